"""Recipes that turn examples into a ready task: train a head, train a language model, continue, or use one untrained.

The models themselves live in `tuner.tasks.head` and `tuner.tasks.language`; serving and retraining from feedback do not
live here.
"""
