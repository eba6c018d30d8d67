"""Checks whether the sentences of an answer are supported by the run's observations.

Does not judge whether a document is right; finding documents is in `agent/knowledge/`.
"""
