"""Runs: the plan-act loop, its state and limits, calls of tools, masking, resuming and branching.

The model is in `agent.llm`, the record in `agent.records`, and feedback on runs in `agent.feedback`.
"""
