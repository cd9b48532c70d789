"""Learning as plain functions: labels, data sets, training, scoring, the gate and its verdicts.

Nothing in this room knows an orchestrator or a market data source. Files are touched by what reads
rows or keeps results only (`dataset`, `pooling`, `ledger`, `shelf`, `search`: through the store
they are given), a network by `dask_training`. Everything else is arithmetic on what callers bring.
"""
