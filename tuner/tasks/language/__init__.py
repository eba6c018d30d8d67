"""A task by the language model: asked under a grammar, with or without examples, bare or trained."""
