"""A continuous-learning pipeline for market signals, scored on real outcomes."""
