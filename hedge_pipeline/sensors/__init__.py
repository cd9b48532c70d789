"""Sensors: thin over a pure decision, every skip with its reason."""
