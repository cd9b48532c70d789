"""The running session in plain Python: the poll loop, what it says of bars, and its supervision.

`predicting` and `signalling` make the rows of the log and serve every way a session is processed,
backfill and replay included; `loop`, `chain_polling` and `alerting` are for a live one only.
"""
