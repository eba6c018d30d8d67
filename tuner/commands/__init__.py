"""The commands that tune, evaluate and promote, and those of encoders and classic tasks; one file per command group.

They parse arguments and print results. Recipes are in `tuner.pipeline`, `tuner.encoder` and `tuner.tasks`.
"""
