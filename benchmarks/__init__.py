"""Measurements: each prints a table and writes JSON; none asserts anything about wall-clock."""
