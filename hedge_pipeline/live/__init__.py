"""Deciding about bars: the plain functions a poll is made of."""
