"""Classic tasks by a head on an encoder: token windows, one task class each, the model and its training loop.

Reading files, the published folder and the recipe from examples to a trained folder live elsewhere (`tuner.tasks.fit`).
"""
