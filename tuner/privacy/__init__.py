"""Erasure in what was made of runs: datasets, files of tunings and evaluations, adapters and trained tasks.

The log itself is erased by `agent.privacy.erasure`, which calls this package.
"""
