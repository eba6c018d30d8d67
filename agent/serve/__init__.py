"""The HTTP service: requests, replies, and who is answered.

What a run or a correction does is decided in `agent.runtime` and `agent.feedback.service`.
"""
