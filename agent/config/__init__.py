"""Settings and places: `ratchet.toml`, the environment variables, the project and its home folder.

What the settings mean to the agent or to a tuning is decided by the packages that use them.
"""
