"""The market in plain Python: calendar, tables, sources, bars and features.

No framework here, and no I/O except inside a source.
"""
