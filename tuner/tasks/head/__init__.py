"""A task by a head on an encoder: tokens and windows, one `Task` each, the model and how it is trained."""
