"""Hedge levels in plain Python: from one option-chain snapshot to levels, signals and trades.

`chain`, `walls`, `gaps`, `exposure` and `context` give the parts of a row of levels, `snapshot` the
row; `joining` says which row is in force at a bar, `strength` and `confidence` what it means for a
prediction there, `signals` whether that is a signal, `trades` what became of it.

No framework, no file, no clock and no network: the caller brings snapshots, bars and rows. Unknown
is NaN, or NULL in a row. What gamma exposure says is a regime of volatility (positive damps moves,
negative amplifies them), never a direction.
"""
