"""The demo: the whole loop on a desk, with a scripted reviewer in the place of a person.

It uses the public commands and pipelines only. The desk itself is in `examples/desk`.
"""
