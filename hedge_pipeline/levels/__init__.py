"""Hedge levels as plain functions: from option chains and daily bars to levels, and what they say.

Nothing in this room reads a file, a clock, a network or an orchestrator; callers bring the rows and
store the results.
"""
