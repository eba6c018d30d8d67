"""The language model: its weights, prompts and grammars, decoding engine, and the models that propose an agent's steps.

The agent loop (`agent.run`), the adapter registry (`agent.registry`) and training (`tuner`) live elsewhere.
"""
