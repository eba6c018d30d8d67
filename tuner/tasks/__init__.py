"""Classic tasks: what the guide to fine-tuning teaches, by a head on an encoder or by the language model."""
