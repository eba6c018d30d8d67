"""Feedback on runs: its checks, the commands that give it, the approved steps, and recall of solved tasks.

How feedback is stored is in `agent.storage`; training on it is in `tuner`.
"""
