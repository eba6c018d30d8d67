"""The SQLite database: its transactions, and the store of runs and feedback in it.

The documents in the same file belong to `agent.knowledge`, and adapters to `agent.registry`.
"""
