"""Training of adapters on packs: the loop, its optimizer step, schedule, checkpoints, metrics and the settings search.

How examples are packed and their loss computed is in `tuner.tree`; what is trained in a model, in `tuner.methods`.
"""
