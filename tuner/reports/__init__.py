"""Reports for people: the gate's report, the report of a tuning, model cards, HTML pages and plots.

Nothing is measured or decided here.
"""
