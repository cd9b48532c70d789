"""Hedge levels in plain Python: from one option-chain snapshot to one row of levels.

Arrays in, numbers out. No framework, no file, no clock and no network: the caller brings the
snapshot, the spot and the daily bars. Unknown is NaN throughout. What gamma exposure says is a
regime of volatility (positive damps moves, negative amplifies them), never a direction.
"""
