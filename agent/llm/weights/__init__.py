"""Finding, checking, converting and loading weights of language models, encoders and rerankers.

Adapters are not weights in this sense: they are kept by `agent.registry` and loaded by `agent.llm.engine`.
"""
