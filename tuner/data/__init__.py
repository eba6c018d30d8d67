"""From feedback to training examples: which steps are trained, the dataset folder, and their token ids and targets.

Packing them into trees is in `tuner.tree`. The data of the classic tasks is in `tuner.tasks.data`.
"""
