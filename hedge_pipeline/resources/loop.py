"""Dagster resources: the source, the store and the registry, and the deployment made of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import dagster as dg

from hedge_pipeline.settings import load_settings

if TYPE_CHECKING:
    from hedge_pipeline.market.calendar import SessionCalendar
    from hedge_pipeline.market.sources import MarketSource
    from hedge_pipeline.resources.registry import MlflowRegistry
    from hedge_pipeline.stages import Deployment
    from hedge_pipeline.store import Store


class SourceResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The market data source the settings name. Subclass and override `open` in tests."""

    def open(self, calendar: "SessionCalendar") -> "MarketSource":
        """Opens the source."""
        from hedge_pipeline.opening import source_of

        return source_of(load_settings(), calendar)


class StoreResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The Parquet tables and models at HEDGE_DATA_URL."""

    def open(self) -> "Store":
        """Opens the store; nothing is created before the first write."""
        from hedge_pipeline.stages import open_store

        return open_store(load_settings())


class RegistryResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """MLflow at MLFLOW_TRACKING_URI."""

    def open(self) -> "MlflowRegistry":
        """Opens the registry; nothing is connected before the first publication."""
        from hedge_pipeline.opening import open_registry

        return open_registry(load_settings())


class LoopResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The deployment the stages work on, made of source, store and settings."""

    source: dg.ResourceDependency[SourceResource]
    store: dg.ResourceDependency[StoreResource]
    registry: dg.ResourceDependency[RegistryResource]

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["LoopResource"]:
        """Lets go of the deployment afterwards.

        A code server has one for every look of a schedule or sensor; Python would keep what they
        have read, which hangs together in circles, until tens of megabytes have gathered.
        """
        try:
            yield self
        finally:
            self.__dict__.pop("deployment", None)
            gc.collect()

    @cached_property
    def deployment(self) -> "Deployment":
        """The deployment; opened once per run.

        Raises:
            StageError: the store is a replay's and HEDGE_MODE is not `replay`.
        """
        from hedge_pipeline.replay import check_mode
        from hedge_pipeline.stages import deploy

        deployment = deploy(load_settings(), self.source.open, store=self.store.open())
        check_mode(deployment)
        return deployment
