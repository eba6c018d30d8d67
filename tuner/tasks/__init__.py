"""Classic supervised tasks: train, evaluate and serve classifiers, taggers and other models of texts.

Reading data lives in `data/`, heads on encoders in `head/`, language models in `language/`, training in `fit/` and
corrections in `feedback/`. Tuning the agent's own model is in `tuner.pipeline`.
"""
