"""Adapters and trained tasks on disk: sealed folders, their states, and which one is served.

Nothing here imports torch; loading an adapter is in `agent.llm` and `agent.encoders`.
"""
