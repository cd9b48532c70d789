"""Whether the service does its work: facts, what is wrong with them, and what was told already.

A `Trouble` has a name that stays while it lasts, so that it is told once per period and not at
every look. Causes and next steps are in words. Of Dagster only its database is asked, see
`heartbeats.py`, and of MLflow nothing.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hedge_pipeline import stages, storage
from hedge_pipeline.backup import last_backup, restoring
from hedge_pipeline.disks import Disk, disks
from hedge_pipeline.heartbeats import HeartbeatsUnknown, daemon_heartbeat
from hedge_pipeline.learning import gate
from hedge_pipeline.learning.training import ModelError
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.market.tables import (
    ALERTS,
    OPTION_CHAINS,
    OUTCOMES,
    PREDICTION_LOG,
    PROMOTIONS,
    RAW_QUOTES,
)
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import StoreError

if TYPE_CHECKING:
    from hedge_pipeline.settings import Settings
    from hedge_pipeline.store import Store

TOLD = "operations/alerts.json"
SEEN = "operations/health.json"
BACKUP_AGE = dt.timedelta(hours=26)
DAEMON_SILENCE = dt.timedelta(minutes=3)
# tables of what was so at a moment, which nobody can make again
ONLY_RECORDED = frozenset(x.name for x in (PREDICTION_LOG, PROMOTIONS, OPTION_CHAINS, ALERTS))
HARDLY_FREE = 100 * storage.MEGABYTE
RESTART = "stop the service and start it again with `hedge up`"


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong.

    Attributes:
        name: the same while it lasts.
        message: cause and next step, one line.
        grave: the service does not do its work; otherwise it should be looked at.
    """

    name: str
    message: str
    grave: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known of the service at a moment; None = unknown or none.

    Attributes:
        now: aware.
        session: label of the session that is to be polled: the open one; of a replay there is none.
        opened: when it opened.
        last_bars: end of the newest bar of every watched symbol in the newest stored session.
        last_outcome: start of the newest bar that has an outcome.
        last_poll: of the poll run.
        daemon: last sign of life of the slowest required daemon.
        unseen: why the daemon cannot be looked at; "" = it can.
        disks: the file systems of the data folder and of DAGSTER_HOME.
        unread: why newest rows are unknown; "" = they are known.
    """

    now: dt.datetime
    session: str | None
    opened: dt.datetime | None
    last_bars: Mapping[str, dt.datetime | None]
    last_outcome: dt.datetime | None
    last_poll: dt.datetime | None
    daemon: dt.datetime | None
    unseen: str = ""
    disks: tuple[Disk, ...] = ()
    unread: str = ""

    @property
    def last_bar(self) -> dt.datetime | None:
        """End of the newest stored bar of any symbol."""
        return max((bar for bar in self.last_bars.values() if bar), default=None)


def facts(deployment: Deployment, home: Path | None) -> Facts:
    """Reads the newest rows and heartbeats.

    Args:
        deployment: whose.
        home: DAGSTER_HOME; None = the daemon is not looked at.
    """
    now = deployment.clock()
    daemon, unseen = None, ""
    try:
        daemon = daemon_heartbeat(home) if home is not None else None
    except HeartbeatsUnknown as error:
        unseen = str(error)
    session = None if deployment.replay else deployment.calendar.session_at(now)
    last_bars: dict[str, dt.datetime | None] = dict.fromkeys(deployment.symbols)
    last_outcome, beat, unread = None, None, ""
    try:
        beat = Heartbeat.read(deployment.store)
        last_bars = _last_bars(deployment)
        last_outcome = _last_outcome(deployment)
    except StoreError as error:
        unread = str(error)
    return Facts(
        now=now,
        session=session.label if session else None,
        opened=session.opens if session else None,
        last_bars=last_bars,
        last_outcome=last_outcome,
        last_poll=beat.moment if beat else None,
        daemon=daemon,
        unseen=unseen,
        disks=disks(deployment.store.url, home),
        unread=unread,
    )


def _last_bars(deployment: Deployment) -> dict[str, dt.datetime | None]:
    labels = deployment.store.sessions(RAW_QUOTES, last=1)
    rows = deployment.store.read(RAW_QUOTES, labels, columns=("symbol", "bar_ts"))
    length = dt.timedelta(seconds=deployment.calendar.bar_seconds)
    ends = (rows.groupby("symbol")["bar_ts"].max() + length).to_dict()
    return {x: ends[x].to_pydatetime() if x in ends else None for x in deployment.symbols}


def _last_outcome(deployment: Deployment) -> dt.datetime | None:
    labels = deployment.store.sessions(OUTCOMES, last=1)
    if not labels:
        return None
    times = deployment.store.read(OUTCOMES, labels, columns=("bar_ts",))["bar_ts"]
    found: dt.datetime = times.max().to_pydatetime()
    return found


def patience_of(settings: Settings) -> dt.timedelta:
    """How old the newest bar and the last poll may be in a session.

    Between two bars, and between two polls, nothing can be new.
    """
    between = max(settings.bar_seconds, settings.polling_interval)
    return dt.timedelta(minutes=settings.alert_no_bar_minutes, seconds=between)


def service_troubles(deployment: Deployment, settings: Settings, found: Facts) -> list[Trouble]:
    """What is wrong with polling, daemon, disks, store and backup.

    Args:
        deployment: of the settings.
        settings: of the deployment.
        found: its facts.
    """
    live = [*disk_troubles(found.disks), *live_troubles(found, patience_of(settings))]
    backup = backup_trouble(deployment, settings)
    everything = [*live, *store_troubles(deployment), *([backup] if backup else [])]
    return list(dict.fromkeys(everything))  # of one broken file several looks may tell


def told_of_store(look: Callable[[], Iterable[Trouble]]) -> list[Trouble]:
    """Troubles that a look at the store finds; one that cannot look is a trouble itself.

    A broken file must not keep anybody from being told of it, or of all else.
    """
    try:
        return list(look())
    except StoreError as error:
        return [Trouble("data folder", str(error), grave=True)]


def live_troubles(found: Facts, patience: dt.timedelta) -> list[Trouble]:
    """No new bars, of every symbol or of one, and a daemon that is silent.

    Args:
        found: the facts.
        patience: see `patience_of`.
    """
    silent = daemon_trouble(found.now, found.daemon, found.unseen)
    troubles = [silent] if silent else []
    if found.unread:
        return [*troubles, Trouble("data folder", found.unread, grave=True)]
    if found.session is None or found.opened is None:
        return troubles
    opened = found.opened
    silence = {x: found.now - max(opened, bar or opened) for x, bar in found.last_bars.items()}
    longest = max(silence, key=lambda x: silence[x])
    if silence[longest] <= patience:
        return troubles
    polled = found.last_poll
    alive = polled is not None and found.now - polled < patience
    cause = (
        "the poll run is alive, so the source has none: see `hedge doctor`"
        if alive
        else "nobody polls: see polling_schedule in the UI, or start `hedge up`"
    )
    everybody = min(silence.values()) > patience
    whose = "" if everybody else f" of {longest}"
    minutes = (min(silence.values()) if everybody else silence[longest]).total_seconds() / 60
    told = f"no new bar{whose} for {minutes:.0f} min; {cause}"
    # of one symbol it may be that nobody trades it: a probe must not end the service for that
    troubles.append(Trouble(f"no new bar{whose} in {found.session}", told, grave=everybody))
    return troubles


def disk_troubles(found: Iterable[Disk]) -> list[Trouble]:
    """Disks that are nearly full or read-only; grave where soon nothing can be written."""
    troubles = []
    for disk in found:
        if disk.refuses:
            words = (
                f"the disk of {disk.folder} takes no write: {disk.refuses}: stop the service, "
                "check the disk and mount it again"
            )
            troubles.append(Trouble(f"disk: {disk.folder}", words, grave=True))
        told = f"the disk of {disk.folder} has {disk.free / storage.MEGABYTE:.0f} MB left"
        if disk.free < HARDLY_FREE:
            words = f"{told}, soon nothing can be stored: make room"
            troubles.append(Trouble(f"disk full: {disk.folder}", words, grave=True))
        elif disk.share < storage.LEAST_FREE:
            troubles.append(Trouble(f"disk space: {disk.folder}", f"{told}: make room"))
    return troubles


def daemon_trouble(now: dt.datetime, seen: dt.datetime | None, unseen: str) -> Trouble | None:
    """A daemon that is silent or cannot be looked at; one that has never run is no trouble.

    Dagster's schedules and sensors wait until a clock that was set back is where it was.

    Args:
        now: aware.
        seen: its last sign of life, aware; None = none yet.
        unseen: see `Facts`.
    """
    if unseen:
        return Trouble("Dagster's database", unseen, True)
    if seen is None or abs(now - seen) <= DAEMON_SILENCE:
        return None
    minutes = abs(now - seen).total_seconds() / 60
    if seen > now:
        told = (
            f"the clock was set back: a poll run goes on, but Dagster starts nothing for "
            f"{minutes:.0f} min, before {seen:%Y-%m-%d %H:%M} UTC"
        )
        return Trouble("clock", told)
    return Trouble("daemon", f"Dagster's daemon is silent for {minutes:.0f} min; {RESTART}", True)


def store_troubles(deployment: Deployment) -> list[Trouble]:
    """What `file_troubles` and `model_trouble` say."""

    def of_model(symbol: str) -> list[Trouble]:
        trouble = model_trouble(deployment, symbol)
        return [trouble] if trouble else []

    looks = [partial(of_model, symbol) for symbol in deployment.symbols]
    looks = [partial(file_troubles, deployment), *looks]
    return [trouble for look in looks for trouble in told_of_store(look)]


def file_troubles(deployment: Deployment) -> list[Trouble]:
    """Broken files that were moved aside, and a restoration that did not end."""
    troubles = []
    if restoring(deployment.store) is not None:
        troubles.append(
            Trouble("restoring", "a restoration has not ended: run `hedge restore` again", True)
        )
    aside = deployment.store.quarantined()
    if aside:
        names = ", ".join(aside[:3]) + (" ..." if len(aside) > 3 else "")
        lost = sorted({PurePosixPath(path).parts[0] for path in aside} & ONLY_RECORDED)
        told = "materialize their sessions again"
        if lost:
            told = (
                f"what {' and '.join(lost)} have lost is in a backup only (`hedge restore` into an "
                f"empty place); of others {told}"
            )
        troubles.append(
            Trouble(
                f"{len(aside)} broken files",
                f"{len(aside)} broken files were moved aside: {names}; check the disk; {told}; "
                "then delete them",
            )
        )
    return troubles


def model_trouble(deployment: Deployment, symbol: str) -> Trouble | None:
    """The serving model's file is missing or damaged, or the skill is lost."""
    ledger = deployment.ledger(symbol)
    for version in (ledger.pinned,) if ledger.pinned else ledger.accepted[-1:]:
        try:
            deployment.shelf.load(symbol, version)
        except ModelError as error:
            return Trouble(
                f"{symbol}: model not found",
                f"{error}: restore models/ from the backup, or `hedge retrain --symbol {symbol}`",
                True,
            )
    if ledger.state.status is gate.Skill.LOST:
        return Trouble(
            f"{symbol}: skill lost in era {ledger.state.era}",
            f"{symbol}: skill was proven and is lost; there is no champion until the evidence "
            "says so again",
        )
    return None


def learning_words(deployment: Deployment, symbol: str) -> str:
    """Where a symbol stands on the way to its next model, with the next step.

    Raises:
        ValueError: there is no model and nothing to make one of; with cause and next step.
    """
    newest = deployment.shelf.newest(symbol)
    new, needed = stages.new_samples(deployment, symbol), deployment.min_samples
    sessions = len(stages.settled_sessions(deployment, symbol, last=deployment.plan.least_sessions))
    if newest is None:
        if sessions < deployment.plan.least_sessions:
            raise ValueError(
                f"{symbol}: not enough data for retraining: {sessions} of the "
                f"{deployment.plan.least_sessions} sessions a training needs have outcomes; "
                "run `hedge bootstrap`, or wait for more sessions"
            )
        raise ValueError(f"{symbol}: no model found: run `hedge retrain --symbol {symbol}`")
    if new < needed:
        return (
            f"{symbol}: version {newest.version}; {new} of {needed} new outcomes "
            "(MIN_SAMPLES_FOR_RETRAIN) for the next one"
        )
    hour = deployment.retrain_hour
    when = "at any hour" if hour is None else f"at {hour}:00 exchange time (RETRAIN_HOUR)"
    return f"{symbol}: version {newest.version}; {new} new outcomes, the next training is {when}"


def backup_trouble(deployment: Deployment, settings: Settings) -> Trouble | None:
    """A backup that is asked for and is older than a day, or was never made."""
    if not settings.backup_url.get_secret_value() or not deployment.store.sessions(
        RAW_QUOTES, last=1
    ):
        return None
    last = last_backup(deployment.store)
    if last is None:
        return Trouble("backup", "no backup was made yet: run `hedge backup`")
    age = deployment.clock() - dt.datetime.fromisoformat(last["at"])
    if age <= BACKUP_AGE:
        return None
    hours = age.total_seconds() / 3600
    return Trouble("backup", f"the last backup is {hours:.0f} h old: see the job housekeeping")


def training_trouble(
    symbol: str, failed: int, run_id: str, why: str, least: int = 1
) -> Trouble | None:
    """Trainings that fail again and again.

    Args:
        symbol: whose.
        failed: in a row.
        run_id: the newest failed run.
        why: what it says.
        least: from how many on it is a trouble, HEDGE_ALERT_FAILED_TRAININGS.
    """
    if failed < max(least, 1):
        return None
    return Trouble(
        f"{symbol}: retraining failed",
        f"{symbol}: retraining failed, {failed} in a row: {why} (run {run_id[:8]}); when that is "
        f"mended: `hedge retrain --symbol {symbol}`",
    )


def as_json(found: Facts, troubles: Sequence[Trouble], deployment: Deployment) -> dict[str, Any]:
    """What `hedge health` prints."""
    following = deployment.calendar.next_session(found.now)

    def age(moment: dt.datetime | None) -> float | None:
        return None if moment is None else round((found.now - moment).total_seconds(), 1)

    return {
        "healthy": not any(trouble.grave for trouble in troubles),
        "at": found.now.isoformat(timespec="seconds"),
        "session": found.session,
        "next_opening": following.opens.isoformat() if following else None,
        "last_bar_age_seconds": age(found.last_bar),
        "last_outcome_age_seconds": age(found.last_outcome),
        "last_poll_age_seconds": age(found.last_poll),
        "daemon_age_seconds": age(found.daemon),
        "disks": [
            {
                "folder": disk.folder,
                "free_bytes": disk.free,
                "total_bytes": disk.total,
                "refuses": disk.refuses,
            }
            for disk in found.disks
        ],
        "troubles": [vars(trouble) for trouble in troubles],
    }


# -- telling ---------------------------------------------------------------------------------------


def untold(
    store: Store, troubles: Iterable[Trouble], now: dt.datetime, every: dt.timedelta
) -> list[Trouble]:
    """The troubles that were not told within the last period."""
    known = _told(store)
    return [x for x in troubles if x.name not in known or now - known[x.name] >= every]


def mark_told(
    store: Store, troubles: Iterable[Trouble], now: dt.datetime, every: dt.timedelta
) -> None:
    """Remembers when troubles were told; what is older than a period is forgotten."""
    known = {name: at for name, at in _told(store).items() if now - at < every}
    known |= {trouble.name: now for trouble in troubles}
    content = json.dumps({name: at.isoformat() for name, at in sorted(known.items())})
    store.write_bytes(TOLD, content.encode())


def _told(store: Store) -> dict[str, dt.datetime]:
    try:
        found = json.loads(store.read_bytes(TOLD))
        return {str(name): dt.datetime.fromisoformat(at) for name, at in found.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}
