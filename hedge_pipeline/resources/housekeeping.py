"""What the nightly job does, step by step, and what the watch over the service tells.

The steps are functions of other modules; here is only their order and what they are given.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hedge_pipeline import health, stages, storage
from hedge_pipeline.backup import BackupError, Places, back_up
from hedge_pipeline.checks import nightly
from hedge_pipeline.market.tables import RAW_QUOTES
from hedge_pipeline.opening import open_notifier, places
from hedge_pipeline.resources import upkeep
from hedge_pipeline.settings import Settings, load_settings
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import StoreError

if TYPE_CHECKING:
    import dagster as dg

    from hedge_pipeline.health import Trouble
    from hedge_pipeline.resources.loop import LoopResource

COMPACTED_SESSIONS = 10
ABANDONED = dt.timedelta(days=1)


def steps(
    instance: dg.DagsterInstance, loop: LoopResource, *, before: dt.datetime | None = None
) -> list[tuple[str, Callable[[], str]]]:
    """Names and work; each says what it did. The backup holds the result of what comes before it.

    The checks come last: whatever becomes of them, there is a backup.

    Args:
        instance: whose runs, ticks and events are freed.
        loop: what is compacted, freed, saved and checked.
        before: aware; older runs, ticks and events go. None = as HEDGE_RUN_RETENTION_DAYS says.
    """
    settings, deployment = load_settings(), loop.deployment
    found, backup = places(settings), settings.backup_url.get_secret_value()
    home = Path(instance.root_directory)
    old = before or dt.datetime.now(dt.UTC) - dt.timedelta(days=settings.run_retention_days)
    return [
        ("broken files", lambda: _quarantined(deployment)),
        ("temporary files", lambda: f"{storage.sweep(found, backup, ABANDONED)} removed"),
        ("compaction", lambda: _compacted(deployment)),
        ("summaries", lambda: _summed_up(deployment)),
        ("tables", lambda: _forgotten(deployment, settings)),
        ("runs", lambda: f"{upkeep.delete_old_runs(instance, home, old)} deleted"),
        ("ticks", lambda: _ticked(instance, old)),
        ("events", lambda: f"{upkeep.delete_old_events(instance, home, old)} deleted"),
        ("MLflow", lambda: _pruned(loop, settings)),
        ("sizes", lambda: _measured(deployment, found)),
        ("backup", lambda: _saved(found, settings)),
        ("checks", lambda: nightly.evaluate(instance, loop)),
    ]


def _quarantined(deployment: Deployment) -> str:
    moved = storage.quarantine(deployment)
    return f"moved aside: {', '.join(moved)}" if moved else "none"


def _compacted(deployment: Deployment) -> str:
    labels = deployment.store.sessions(RAW_QUOTES, last=COMPACTED_SESSIONS)
    for label in labels:
        stages.compact_session(deployment, label)
    return f"{len(labels)} sessions"


def _summed_up(deployment: Deployment) -> str:
    found = storage.condense(deployment)
    return ", ".join(f"{name} of {sessions} sessions" for name, sessions in found.items())


def _measured(deployment: Deployment, found: Places) -> str:
    total = sum(storage.note_sizes(deployment, found)["areas"].values())
    return f"{total / 1e6:.1f} MB"


def _forgotten(deployment: Deployment, settings: Settings) -> str:
    if settings.retention_days is None:
        return "kept for ever"
    done = storage.forget(deployment, settings.retention_days)
    found = f"{done['sessions']} sessions, {done['bytes'] / 1e6:.1f} MB removed"
    kept = [x for x in deployment.symbols if storage.first_needed(deployment, x) is None]
    return f"{found}; nothing is, before {', '.join(kept)} has a judged model" if kept else found


def _ticked(instance: dg.DagsterInstance, before: dt.datetime) -> str:
    count = upkeep.delete_old_ticks(instance, before)
    return f"old ones of {count} schedules and sensors deleted"


def _pruned(loop: LoopResource, settings: Settings) -> str:
    registry = loop.registry.open()
    count = sum(registry.prune(loop.deployment, x) for x in loop.deployment.symbols)
    if not count and not upkeep.has_garbage(settings.tracking_uri):
        return "nothing to delete"
    freed = upkeep.collect_garbage(settings.tracking_uri, settings.artifacts)
    if not count:
        return "what was deleted before is collected"
    return f"{count} versions deleted" + ("" if freed else ", their files are the server's matter")


def _saved(found: Places, settings: Settings) -> str:
    url = settings.backup_url.get_secret_value()
    if not url:
        return "HEDGE_BACKUP_URL is empty"
    done = back_up(found, url, keep=settings.backup_keep)
    told = f"{done.snapshot.name}, {done.new} new contents, {done.new_bytes / 1e6:.1f} MB"
    if done.damaged:
        raise BackupError(f"{told}, but without a part: {'; '.join(done.damaged)}")
    return told + ("" if done.snapshot.at_one_moment else ", not of one moment")


# -- the watch -------------------------------------------------------------------------------------

# when troubles were told that could not be written down; the code server lives long enough
_UNWRITTEN: dict[str, dt.datetime] = {}


def _looked(
    settings: Settings, deployment: Deployment, instance: dg.DagsterInstance
) -> tuple[health.Facts, list[Trouble]]:
    """The facts, and everything that is wrong now."""
    found = health.facts(deployment, places(settings).home)
    told = health.service_troubles(deployment, settings, found)
    told += health.told_of_store(lambda: _room(deployment, settings))
    least = settings.alert_failed_trainings
    told += upkeep.training_troubles(instance, deployment.symbols, least)
    return found, told


def _room(deployment: Deployment, settings: Settings) -> list[Trouble]:
    room = storage.over_budget(
        storage.report(deployment, places(settings), settings.disk_budget_mb, noted=True)
    )
    return [health.Trouble("disk", room)] if room else []


def watch(instance: dg.DagsterInstance, loop: LoopResource) -> str:
    """Sends an alert for every trouble that was not told lately; says what is wrong.

    What was seen is left in `operations/health.json` for whoever looks at files.
    """
    settings, deployment = load_settings(), loop.deployment
    facts, found = _looked(settings, deployment, instance)
    seen = health.as_json(facts, found, deployment)
    try:
        deployment.store.write_bytes(health.SEEN, json.dumps(seen, indent=1).encode())
    except StoreError as error:  # a full disk is what should be told most of all
        found.append(health.Trouble("data folder", str(error), grave=True))
    now, every = deployment.clock(), dt.timedelta(hours=settings.alert_repeat_hours)
    new = [
        trouble
        for trouble in health.untold(deployment.store, found, now, every)
        if trouble.name not in _UNWRITTEN or now - _UNWRITTEN[trouble.name] >= every
    ]
    notifier = open_notifier(settings)
    if new and notifier:
        text = "\n".join(trouble.message for trouble in new)
        deliveries = notifier.send(text, f"hedge_pipeline: {', '.join(x.name for x in new)}")
        if any(delivery.ok for delivery in deliveries):
            try:
                health.mark_told(deployment.store, new, now, every)
            except StoreError:
                _UNWRITTEN.update({trouble.name: now for trouble in new})
    return "; ".join(trouble.message for trouble in found) or "all is well"
