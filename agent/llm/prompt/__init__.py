"""Everything between a run's record and token ids: messages, tool specifications, grammars, truncation.

Nothing here runs a model; the engine in `agent.llm.engine` does.
"""
