"""Settings turned into the objects that do the work, for the CLI, for Dagster and for Python.

What one function does with all of them, such as a training by hand, stands here, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hedge_pipeline.market.sources import SourceOptions, open_source
from hedge_pipeline.stages import Candidate, Deployment, deploy

if TYPE_CHECKING:
    from hedge_pipeline.backup import Places
    from hedge_pipeline.market.calendar import SessionCalendar
    from hedge_pipeline.market.sources import MarketSource
    from hedge_pipeline.resources.notifier import Notifier
    from hedge_pipeline.resources.registry import MlflowRegistry
    from hedge_pipeline.settings import Settings


ALWAYS_OPEN = "24/7"


def live_settings(settings: Settings) -> Settings:
    """The settings of a live service: a simulated market is always open unless told otherwise.

    Without HEDGE_CALENDAR a store that holds sessions of the default calendar keeps to it.
    """
    given = settings.source != "simulated" or "calendar" in settings.model_fields_set
    if given or settings.mode == "replay" or _holds_sessions_of(settings):
        return settings
    return settings.model_copy(update={"calendar": ALWAYS_OPEN})


def _holds_sessions_of(settings: Settings) -> bool:
    """Whether the newest stored session is one of the calendar of the settings."""
    from hedge_pipeline.market.calendar import SessionCalendar, utc_times
    from hedge_pipeline.market.tables import RAW_QUOTES
    from hedge_pipeline.store import Store, StoreError

    store = Store(settings.data_url)
    try:
        labels = store.sessions(RAW_QUOTES, last=1)
        bars = store.read(RAW_QUOTES, labels, columns=("bar_ts",))
    except StoreError:  # whoever needs the store says so
        return False
    calendar = SessionCalendar(
        settings.calendar, bar_seconds=settings.bar_seconds, start=settings.history_start
    )
    if not labels or labels[-1] not in calendar:
        return False
    times = utc_times(bars["bar_ts"])
    return bool((calendar.session(labels[-1]).index_of(times) >= 0).all())


def source_options(settings: Settings, calendar: SessionCalendar) -> SourceOptions:
    """What the settings give a source."""
    extra = {}
    if "://" not in settings.data_url:
        extra["cache_dir"] = str(Path(settings.data_url) / ".cache" / settings.source)
    return SourceOptions(calendar, paths=settings.source_path, seed=settings.seed, extra=extra)


def source_of(settings: Settings, calendar: SessionCalendar) -> MarketSource:
    """The market data source the settings name."""
    return open_source(settings.source, source_options(settings, calendar))


def open_deployment(settings: Settings) -> Deployment:
    """The deployment the settings describe; nothing is read or written yet."""
    return deploy(settings, lambda calendar: source_of(settings, calendar))


def open_registry(settings: Settings, *, plots: bool = True) -> MlflowRegistry:
    """The MLflow registry the settings describe; nothing is connected yet."""
    from hedge_pipeline.resources.registry import MlflowRegistry

    return MlflowRegistry(
        settings.tracking_uri,
        artifacts=settings.artifacts,
        plots=plots,
        newest=settings.model_versions,
        dagster_url=settings.dagster_url,
        ui_url=settings.mlflow_url,
    )


def open_notifier(settings: Settings) -> Notifier:
    """Whoever is told of signals.

    Raises:
        SettingsError: an alert URL is not understood; the line does not show it.
    """
    from hedge_pipeline.resources.notifier import Notifier

    return Notifier(settings.alert_urls)


def places(settings: Settings) -> Places:
    """Where the deployment's state lives, for backup and storage reports."""
    from hedge_pipeline.backup import Places
    from hedge_pipeline.service import dagster_home

    uri = settings.tracking_uri
    file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    return Places(settings.data_url, file, dagster_home(settings))


def retrain(
    settings: Settings, symbol: str, *, min_samples: int = 1
) -> tuple[Candidate | None, str]:
    """Trains a candidate now, gives its verdict and publishes both.

    Args:
        settings: of the deployment, see `live_settings`.
        symbol: whose model.
        min_samples: at least so many new matured outcomes; the hour does not matter.

    Returns:
        The candidate and its verdict in words; None and the reason if nothing was trained.

    Raises:
        StageError: no training is possible, a feature was made from the future, or the store is a
            replay's and the settings are not.
        StoreError: a table or a model cannot be read or written.
        ModelError: the file of a model that is needed is missing or damaged.
        RegistryError: MLflow does not answer; the training itself is stored.
        SettingsError: no MLflow is named for tables at a URL; the training itself is stored.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.replay import check_mode

    settings = live_settings(settings)
    deployment = open_deployment(settings)
    check_mode(deployment)
    stages.fold_evidence(deployment, symbol)
    hour = deployment.retrain_hour or 0
    decision = stages.retraining_decision(deployment, symbol, hour=hour, min_samples=min_samples)
    if not decision.retrain:
        return None, decision.reason
    candidate = stages.train_candidate(deployment, symbol)
    leaks = stages.leaks_in_words(deployment, symbol)
    if leaks:
        raise stages.StageError(f"version {candidate.card.version} gets no verdict: {leaks}")
    entries = stages.judge(deployment, symbol)
    open_registry(settings).publish(deployment, symbol)
    words = f"{entries[-1]['event']}: {entries[-1]['reason']}" if entries else "already judged"
    return candidate, words
