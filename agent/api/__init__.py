"""The Python API: an agent over a project, its runs, documents, adapters and tasks, for scripts, notebooks and asyncio.

Holds no recipe of its own: runs belong to `agent.runtime`, feedback to `agent.feedback.service`, training to `tuner`.
The names are exported by `agent` itself.
"""
