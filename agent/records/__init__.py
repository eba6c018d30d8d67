"""The records of runs and of feedback on them: frozen data with a versioned JSON form.

Nothing here reads a clock, a file or the environment; the records are stored by `agent.storage`.
"""
