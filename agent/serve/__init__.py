"""Faces of the agent towards other programs: HTTP and the resident runtime behind it."""
