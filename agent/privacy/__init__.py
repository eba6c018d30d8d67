"""Personal data: masking it in texts, and erasing all data of a person.

Erasing what was trained is in `tuner.privacy`.
"""
