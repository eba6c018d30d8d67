"""Classic tasks by a language model: prompts, grammars, few-shot examples and generation.

Training its adapter lives in `tuner.tasks.fit.language`; the engine and the renderer live in `agent.llm`.
"""
