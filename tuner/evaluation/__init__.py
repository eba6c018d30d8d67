"""Suites of held-out tasks, their checks, the evaluation of an adapter on them, and the decision of the gate.

Nothing is served or written to the registry here (see `tuner.pipeline.promote`); pages are in `tuner.reports`.
"""
