"""Models that score texts: sentence encoders, and cross-encoders that rerank search results.

Training and evaluating them is in `tuner/encoder/`; indexing and searching in `agent/knowledge/`.
"""
