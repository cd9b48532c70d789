"""How assets report: one materialization per session, and errors in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg

Metadata = Mapping[str, Any]


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """Turns errors a user can mend into a failed step that says so in one line."""
    from hedge_pipeline.learning.training import ModelError
    from hedge_pipeline.market.calendar import NoSession
    from hedge_pipeline.market.sources import SourceError
    from hedge_pipeline.settings import SettingsError
    from hedge_pipeline.stages import StageError
    from hedge_pipeline.store import StoreError

    try:
        yield
    except (SettingsError, StoreError, StageError, SourceError, NoSession, ModelError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def for_each_session(context: dg.AssetExecutionContext, work: Callable[[str], Metadata]) -> None:
    """Does the work for every session of the run and reports each under its own partition."""
    for label in context.partition_keys:
        with plain_failures():
            metadata = work(label)
        context.add_asset_metadata(metadata, partition_key=label)
        numbers = ", ".join(
            f"{name.removeprefix('dagster/')} {value}"
            for name, value in metadata.items()
            if isinstance(value, int | float)
        )
        context.log.info(f"{label}: {numbers}")
