"""Imports what the processes of the service have in common, once, before they are copied.

Pages of memory that no copy writes to exist once; see `processes.py`. Nothing here starts a thread
or opens a file.
"""

import dagster._cli
import dagster._daemon.cli
import dagster._grpc.server  # noqa: F401
import exchange_calendars  # noqa: F401
import fsspec  # noqa: F401
import pyarrow.parquet  # noqa: F401
import sqlalchemy  # noqa: F401

import hedge_pipeline.live.loop
import hedge_pipeline.stages  # noqa: F401
from hedge_pipeline.definitions import defs
from hedge_pipeline.learning.training import native_xgboost

native_xgboost()
defs()
