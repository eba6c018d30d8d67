"""Readers that turn files into task examples, and the split into training, validation and test examples.

No models, tokenizers or training here; see `tuner.tasks.head`, `tuner.tasks.language` and `tuner.tasks.fit`.
"""
