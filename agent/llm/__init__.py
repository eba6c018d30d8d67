"""The model runtime: weights, rendering, grammar, decoding, adapters, the chat model."""
