"""Tuning of the sentence encoder: the dataset made from feedback, the trainer, the gate and the pipeline around them.

Serving an encoder lives in `agent.encoders`, and heads for classic tasks on an encoder in `tuner.tasks.head`.
"""
