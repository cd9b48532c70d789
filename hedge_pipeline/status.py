"""The state of a deployment in numbers and words: what `hedge status` and `hedge doctor` show."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from hedge_pipeline import health, insight, stages, storage
from hedge_pipeline.backup import last_backup
from hedge_pipeline.heartbeats import daemon_heartbeat
from hedge_pipeline.learning import gate, scoring
from hedge_pipeline.legacy import legacy_summary
from hedge_pipeline.logs import first_line
from hedge_pipeline.market.calendar import UTC
from hedge_pipeline.market.sources import NoDataYet
from hedge_pipeline.market.tables import (
    GAPS,
    OUTCOMES,
    PREDICTION_LOG,
    RAW_QUOTES,
    TABLES,
)
from hedge_pipeline.opening import places
from hedge_pipeline.replay import check_mode
from hedge_pipeline.service import dagster_home
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import StoreError

if TYPE_CHECKING:
    from hedge_pipeline.resources.registry import MlflowRegistry
    from hedge_pipeline.settings import Settings

RECENT_SESSIONS = 10


def status(deployment: Deployment) -> dict[str, Any]:
    """Everything `hedge status` shows, ready for JSON.

    Its cost does not grow with the number of stored sessions but for a look at the folders of the
    promotion log and the scores: bytes are those of the last night (`disk_measured_at`, None =
    measured now).
    """
    disk_bytes, measured_at = storage.table_bytes(deployment.store)
    return {
        "data": deployment.store.url,
        "mode": "replay" if deployment.replay else "live",
        "symbols": {symbol: symbol_status(deployment, symbol) for symbol in deployment.symbols},
        "sessions": _sessions(deployment),
        "quarantined": list(deployment.store.quarantined()),
        "disk_bytes": disk_bytes,
        "disk_measured_at": measured_at,
        "legacy": legacy_summary(deployment.store, deployment.calendar),
    }


def _sessions(deployment: Deployment) -> list[dict[str, Any]]:
    """Predictions and coverage of the newest sessions, newest last.

    Of one that runs, coverage is of the bars that have ended.
    """
    store = deployment.store
    found = []
    for label in store.sessions(RAW_QUOTES, last=RECENT_SESSIONS):
        session = deployment.calendar.session(label)
        expected = session.bars_by(deployment.asked_at(session)) * len(deployment.symbols)
        bars = len(store.read(RAW_QUOTES, [label], columns=("symbol",)))
        gaps = len(store.read(GAPS, [label], columns=("symbol",)))
        log = store.read(PREDICTION_LOG, [label], columns=("role", "prediction"))
        served = log[log["role"] == "served"]
        own = {"horizon_bars": [deployment.horizon]}
        outcomes = store.read(OUTCOMES, [label], columns=("status",), only=own)
        found.append(
            {
                "session": label,
                "bars": bars,
                "gaps": gaps,
                "coverage": bars / expected if expected else None,
                "predictions": int(served["prediction"].notna().sum()),
                "abstentions": int(served["prediction"].isna().sum()),
                "matured": int(outcomes["status"].isin(["up", "down", "flat"]).sum()),
            }
        )
    return found


def symbol_status(deployment: Deployment, symbol: str) -> dict[str, Any]:
    """What `hedge status` shows of a symbol, ready for JSON; None = none yet."""
    ledger = deployment.ledger(symbol)
    sums = deployment.scores(symbol)
    sums = sums[sums["role"] == "served"]
    verdicts = ledger.entries[ledger.entries["kind"] == "verdict"]
    last = verdicts.iloc[-1] if len(verdicts) else None
    newest = deployment.shelf.newest(symbol)
    state = ledger.state
    return {
        "predictions": int(sums["predictions"].sum()),
        "abstentions": int(sums["abstentions"].sum()),
        "matured_outcomes": int(sums["labels"].sum()),
        "new_samples": stages.new_samples(deployment, symbol),
        "needed_samples": deployment.min_samples,
        "newest_version": _version(deployment, sums, newest.version if newest else None),
        "champion_version": _version(deployment, sums, ledger.champion),
        "accuracy": scoring.score(sums, deployment.horizon).accuracy(),
        **scoring.score(sums, deployment.horizon, draws=1).losses(),
        "pinned_version": ledger.pinned,
        "feature_drift": stages.feature_drift(deployment, symbol).in_words(),
        "performance_drift": stages.performance_drift(deployment, symbol).in_words(),
        "retraining": insight.retraining_value(deployment, symbol).in_words(),
        "skill": state.status.value,
        "evidence": gate.evidence_in_words(state, deployment.rule),
        "trust": gate.trust(state, deployment.rule),
        "base_rate": state.base_rate(deployment.rule),
        "trained_through": newest.cutoff if newest else None,
        "last_verdict": None
        if last is None
        else {
            "version": int(last["model_version"]),
            "verdict": str(last["event"]),
            "reason": str(last["reason"]),
            "decided_at": last["decided_at"].isoformat(),
        },
    }


def _version(deployment: Deployment, sums: Any, version: int | None) -> dict[str, Any] | None:
    if version is None:
        return None
    own = sums[sums["model_version"] == version]
    score = scoring.score(own, deployment.horizon, draws=500)
    return {"version": version, "accuracy": score.accuracy()}


@dataclass(frozen=True)
class Finding:
    """One line of `hedge doctor`."""

    name: str
    ok: bool
    message: str


def diagnose(settings: Settings, deployment: Deployment, registry: MlflowRegistry) -> list[Finding]:
    """Checks everything a deployment needs, one finding each; never raises."""
    return [
        _finding("configuration", lambda: _configuration(settings)),
        _finding("calendar", lambda: _calendar(deployment)),
        _finding("store", lambda: _store(deployment)),
        _finding("source", lambda: _source(deployment)),
        _finding("mlflow", lambda: _mlflow(registry)),
        _finding("clock", lambda: _clock(deployment)),
        _finding("files", lambda: _files(deployment)),
        _finding("databases", lambda: _databases(settings)),
        *(
            _finding(f"model-{symbol}", partial(_model, deployment, symbol))
            for symbol in deployment.symbols
        ),
        _finding("persistence", lambda: _persistence(deployment)),
        _finding("backup", lambda: _backup(settings, deployment)),
        _finding("daemon", lambda: _daemon(dagster_home(settings), deployment)),
        _finding("trainings", lambda: _trainings(dagster_home(settings), deployment)),
    ]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except Exception as error:  # whatever a check meets is its finding
        return Finding(name, False, first_line(error))


def _configuration(settings: Settings) -> str:
    hour = "any hour" if settings.retrain_hour is None else f"{settings.retrain_hour}:00"
    return (
        f"{', '.join(settings.symbols)} from {settings.source}; retraining at {hour} "
        f"after {settings.min_samples_for_retrain} new samples"
    )


def _calendar(deployment: Deployment) -> str:
    now, calendar = deployment.clock(), deployment.calendar
    running = calendar.session_at(now)
    if running is not None:
        return f"{calendar.name}: session {running.label} is open"
    following = calendar.next_session(now)
    if following is None:
        raise ValueError("no session lies ahead of now")
    when = following.opens.astimezone(ZoneInfo(calendar.timezone))
    return f"{calendar.name}: closed, opens {when:%Y-%m-%d %H:%M %Z}"


def _store(deployment: Deployment) -> str:
    check_mode(deployment)
    deployment.store.check_writable()
    sessions = deployment.store.sessions(RAW_QUOTES)
    return f"{deployment.store.url} is writable and holds {len(sessions)} sessions"


def _source(deployment: Deployment) -> str:
    closed = deployment.calendar.closed_by(deployment.clock())
    if closed is None:
        raise ValueError("no session is over yet")
    session = deployment.calendar.session(closed)
    symbol = deployment.symbols[0]
    try:
        bars = deployment.source.bars(symbol, session, deployment.clock())
    except NoDataYet as nothing:
        return f"{deployment.source.name} answers: {nothing}"
    return f"{deployment.source.name} answers: {len(bars)} bars of {symbol} in {closed}"


def _mlflow(registry: MlflowRegistry) -> str:
    return f"{registry.ping()} answers"


def _files(deployment: Deployment) -> str:
    told = [trouble.message for trouble in health.file_troubles(deployment)]
    for table in TABLES:
        for label in deployment.store.sessions(table, last=RECENT_SESSIONS):
            told += [
                f"{path} is broken: `hedge storage --quarantine` moves it aside"
                for path in deployment.store.broken(table, label)
            ]
    if told:
        raise ValueError("; ".join(told))
    return "no broken file"


def _databases(settings: Settings) -> str:
    """Whether the SQLite files of Dagster and MLflow are sound."""
    found = places(settings)
    files = sorted(found.home.rglob("*.db")) if found.home else []
    files += [found.mlflow] if found.mlflow else []
    damaged, unread = [], []
    for path in files:
        try:
            if why := storage.damage_of(path):
                damaged.append(f"{path}: {why}")
        except (OSError, sqlite3.Error) as error:
            unread.append(f"{path}: {first_line(error)}")
    if damaged:
        raise ValueError(
            f"damaged: {', '.join(damaged)}; no table of the loop is: stop the service and move it "
            "aside, what it knew of runs or versions begins anew, or see `hedge restore`"
        )
    if unread:
        raise ValueError(f"cannot be read now: {', '.join(unread)}")
    return f"{len(files)} are sound" if files else "there is none"


def _model(deployment: Deployment, symbol: str) -> str:
    trouble = health.model_trouble(deployment, symbol)
    if trouble is not None and trouble.grave:
        raise ValueError(trouble.message)
    return health.learning_words(deployment, symbol)


def _daemon(home: Path, deployment: Deployment) -> str:
    """When Dagster's daemon gave its last sign of life."""
    now, seen = deployment.clock(), daemon_heartbeat(home)
    trouble = health.daemon_trouble(now, seen, "")
    if trouble is not None:
        raise ValueError(trouble.message)
    return "has not run yet" if seen is None else f"seen {(now - seen).total_seconds():.0f} s ago"


def _trainings(home: Path, deployment: Deployment) -> str:
    """Whether the newest training of a symbol has failed as a run of Dagster."""
    if not (home / "dagster.yaml").exists():
        return "no run of Dagster yet"
    from hedge_pipeline.resources.upkeep import failures_in

    found = failures_in(home, deployment.symbols)
    if found:
        raise ValueError("; ".join(trouble.message for trouble in found))
    return "the newest of every symbol did not fail"


def _persistence(deployment: Deployment) -> str:
    """Whether what is written survives the container."""
    url = deployment.store.url
    if "://" in url:
        return f"{url} is kept by its server"
    kind = filesystem_of(Path(url), Path("/proc/self/mounts"))
    if kind in ("overlay", "tmpfs", "ramfs"):
        raise ValueError(
            f"{url} lies on {kind}: data are not persisting when the container or machine is "
            "started anew; mount a volume there, or set HEDGE_DATA_URL to one"
        )
    return f"{url} lies on {kind or 'a disk'}"


def filesystem_of(folder: Path, mounts: Path) -> str | None:
    """Kind of the file system a folder is on; None = the system does not say."""
    try:
        lines = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    except OSError:
        return None
    resolved = folder.resolve()
    over = [(point, kind) for point, kind in lines if resolved.is_relative_to(point)]
    return max(over, key=lambda x: len(x[0]))[1] if over else None


def _backup(settings: Settings, deployment: Deployment) -> str:
    trouble = health.backup_trouble(deployment, settings)
    if trouble:
        raise ValueError(trouble.message)
    if not settings.backup_url.get_secret_value():
        return "none is asked for (HEDGE_BACKUP_URL)"
    last = last_backup(deployment.store)
    return f"last made at {last['at']}" if last else "nothing is there to save yet"


def _clock(deployment: Deployment) -> str:
    now = deployment.clock()
    try:
        sessions = deployment.store.sessions(RAW_QUOTES)
    except StoreError:  # a finding of its own
        sessions = ()
    if sessions and not deployment.replay:
        newest = deployment.calendar.session(sessions[-1])
        if now < newest.opens:
            raise ValueError(
                f"the clock says {now:%Y-%m-%d %H:%M} UTC, but session {newest.label} is stored: "
                "set the clock"
            )
    if now < dt.datetime(2026, 1, 1, tzinfo=UTC):
        raise ValueError(f"the clock says {now:%Y-%m-%d %H:%M} UTC: set the clock")
    local = now.astimezone(ZoneInfo(deployment.calendar.timezone))
    return f"{now:%Y-%m-%d %H:%M:%S} UTC, {local:%H:%M} at the exchange"
