"""Small helpers for files, ids, threads and hosts that have nothing to do with agents.

Helpers for text are in `agent.text`.
"""
