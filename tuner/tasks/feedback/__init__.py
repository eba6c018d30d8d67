"""Trained tasks in the agent's loop: served as tools, corrected by reviewers, retrained and gated.

Training from files alone is in `tuner.tasks.fit`.
"""
