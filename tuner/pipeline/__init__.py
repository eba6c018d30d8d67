"""The stages from feedback to a served adapter: dataset, training, candidate, merge, gate and promotion.

Each stage leaves its result on disk; how training, evaluation and the gate's decision work is in their own rooms.
"""
