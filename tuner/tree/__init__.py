"""Packing of examples that share prefixes into trees, with the attention, loss and gradients of a tree.

Knows token ids and weights only; where examples come from is in `tuner.data`, the training loop in `tuner.training`.
"""
