"""Tells a Dagster instance what a replay has produced, so that its UI shows the tables as they are.

Only events are written: the tables are there already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from hedge_pipeline.stages import Deployment

REPORTED_SESSIONS = 30
DRAWN_SESSIONS = 3

SETTINGS = """\
telemetry: {enabled: false}
nux: {enabled: false}
"""


def report_replay(deployment: Deployment, home: Path) -> int:
    """Reports the newest sessions and every symbol's models; returns the events written.

    Args:
        deployment: a finished replay.
        home: the DAGSTER_HOME to report to; made if it is not there.
    """
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(SETTINGS)
    count = 0
    with _instance(home) as instance:
        for event in _events(deployment):
            instance.report_runless_asset_event(event)
            count += 1
    return count


@contextmanager
def _instance(home: Path) -> Iterator[dg.DagsterInstance]:
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(home.resolve())
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    finally:
        if before is None:
            del os.environ["DAGSTER_HOME"]
        else:
            os.environ["DAGSTER_HOME"] = before


def _events(deployment: Deployment) -> Iterator[dg.AssetMaterialization]:
    from hedge_pipeline.assets import pictures
    from hedge_pipeline.market import tables

    sessions = deployment.store.sessions(tables.RAW_QUOTES, last=REPORTED_SESSIONS)
    for label in sessions:
        draw = label in sessions[-DRAWN_SESSIONS:]
        for asset, metadata in pictures.session(deployment, label, draw=draw).items():
            yield _event(asset, label, metadata)
    for symbol in deployment.symbols:
        for asset, metadata in pictures.models(deployment, symbol).items():
            yield _event(asset, symbol, metadata)


def _event(asset: str, partition: str, metadata: dict[str, Any]) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset_key=asset, partition=partition, metadata=metadata, description="from a replay"
    )
