"""The running session in plain Python: the poll loop, its supervision, and the alerts it sends.

`loop` polls and calls the stages, `chain_polling` decides when to ask for option chains, `alerting`
tells of signals, `supervision` says whether somebody polls at all.
"""
