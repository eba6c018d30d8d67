"""The torch decoding engine: scheduling, forward passes, key/value cache, sampling and adapters on a loaded model.

It works on token ids; text, messages and steps are turned into ids by `agent.llm.prompt` and `agent.llm.chat_model`.
"""
