"""Learning as plain functions: labels, data sets, training, scoring, the gate and its verdicts.

Nothing in this room reads a file, a clock, a network or an orchestrator; callers bring the rows and
store the results.
"""
