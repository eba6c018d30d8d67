"""The user's documents: reading and chunking files, storing and indexing them, and searching them.

Encoders and rerankers are in `agent/encoders/`; feedback on runs is in `agent/feedback/`.
"""
