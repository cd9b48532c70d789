"""A year of sessions at an accelerated clock: what the nightly housekeeping leaves on disk.

With --polled every session of the simulated market is polled minute by minute by the live loop, at
a clock that jumps over every pause, in runs of Dagster that report as they do live; then it is
closed, and a candidate trained and judged. Without, every session goes through the loop at once and
runs of Dagster only stand beside it; with --polled 126 that is done for the first 126 sessions and
the others are polled. After each session Dagster has the ticks of its day, and then every step of
the job `housekeeping` is done: compaction, summaries, rows, finished runs, ticks, events and
MLflow's versions that are old freed, a backup made, the checks of the night evaluated. Files are
given the age they would have; old runs are those of more than ten sessions ago. A polled session
has a process of its own, as its runs have in the service, which lasts longer than any of those;
memory is the most such a process held. Interrupted, it reports the sessions until then, and begins
after them when it is called again: polled minute by minute a year takes hours.

    python -m benchmarks.year --sessions 252
    python -m benchmarks.year --sessions 252 --polled
    python -m benchmarks.year --sessions 252 --polled 126
"""

import argparse
import contextlib
import datetime as dt
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import mlflow.cli  # noqa: F401 - before processes are copied, so that none has to
import pandera.pandas  # noqa: F401

from benchmarks.poll import INTERVAL, QUIET, AcceleratedClock
from benchmarks.report import show
from hedge_pipeline import replay, stages, storage
from hedge_pipeline.assets.reporting import LiveReport
from hedge_pipeline.jobs import report_interval
from hedge_pipeline.live.loop import run_loop
from hedge_pipeline.opening import open_deployment, places
from hedge_pipeline.resources import housekeeping
from hedge_pipeline.resources.registry import MlflowRegistry
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment

RETENTION_DAYS = 150
RUNS_KEPT_SESSIONS = 10
VERSIONS_KEPT = 10
BACKUPS_KEPT = 10
EVENTS_OF_A_RUN = 30
AREAS = ("tables", "models", "mlflow", "dagster", "other", "backup")
TICKS_OF_A_DAY = {
    "polling_schedule": 1440,
    "close_session_schedule": 144,
    "watch_schedule": 288,
    "retraining_sensor": 24,
}
TICKS_KEPT_SESSIONS = 2  # `retention` of dagster.yaml, two days for what was skipped
DAY = 86_400.0


@dg.op
def report_bars(context: dg.OpExecutionContext) -> None:
    """Leaves events behind as a poll run does."""
    for _ in range(EVENTS_OF_A_RUN):
        context.log_event(dg.AssetMaterialization("raw_quotes"))


@dg.job
def some_polls() -> None:
    """Stands for a poll run."""
    report_bars()


def most_memory_mb() -> float:
    """The most resident memory that this process ever had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def leave_ticks(instance: dg.DagsterInstance, before: float | None) -> None:
    """Writes the ticks of a day as Dagster's daemon does, and purges old ones as it does.

    Args:
        instance: where.
        before: POSIX seconds; older ones go. None = none is old yet.
    """
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
    from dagster._core.scheduler.instigation import (
        InstigatorState,
        InstigatorStatus,
        ScheduleInstigatorData,
        SensorInstigatorData,
        TickData,
        TickStatus,
    )
    from dagster._core.storage.schedules.schema import JobTickTable
    from dagster._serdes import serialize_value
    from dagster._time import datetime_from_timestamp

    storage: Any = instance.schedule_storage
    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("hedge_pipeline"), "__repository__")
    known = {state.instigator_name for state in instance.all_instigator_state()}
    now = time.time()
    for name, count in TICKS_OF_A_DAY.items():
        kind = InstigatorType.SENSOR if name.endswith("sensor") else InstigatorType.SCHEDULE
        origin = place.get_instigator_origin(name)
        if name not in known:
            data = (
                SensorInstigatorData()
                if kind is InstigatorType.SENSOR
                else ScheduleInstigatorData("* * * * *", start_timestamp=now)
            )
            state = InstigatorState(origin, kind, InstigatorStatus.RUNNING, data)
            instance.add_instigator_state(state)
        selector = origin.get_selector().get_id()
        rows = []
        for number in range(count):
            moment = now + number * 1e-3  # all of the day within seconds, as everything here
            tick = TickData(
                origin.get_id(),
                name,
                kind,
                TickStatus.SKIPPED,
                moment,
                skip_reason=f"the run of this hour is alive, its last poll was at {moment:.0f}",
                selector_id=selector,
                end_timestamp=moment,
            )
            rows.append(
                {
                    "job_origin_id": origin.get_id(),
                    "selector_id": selector,
                    "status": tick.status.value,
                    "type": kind.value,
                    "timestamp": datetime_from_timestamp(moment),
                    "tick_body": serialize_value(tick),
                }
            )
        with storage.connect() as connection:
            connection.execute(JobTickTable.insert(), rows)
        if before is not None:
            instance.purge_ticks(origin.get_id(), selector, before, [TickStatus.SKIPPED])


def age(data: Path, today: str) -> None:
    """Gives what was written for earlier sessions since last night the age of a day and a half."""
    now = time.time()
    for folder in data.glob("*/session=*"):
        status = folder.stat()
        if folder.name.removeprefix("session=") < today and status.st_mtime > now - DAY:
            for path in (*folder.iterdir(), folder):
                os.utime(path, (now - 1.5 * DAY, now - 1.5 * DAY))


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def nights_until_now(out: Path) -> list[dict[str, float]]:
    """What every night until now left."""
    book = out / "nights.jsonl"
    return [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []


def year(out: Path, sessions: int, runs: int, *, at_once: int) -> list[dict[str, float]]:
    """Runs the sessions that are missing, each polled one in a process of its own.

    Args:
        out: folder of its own; what an earlier call has left there goes on.
        sessions: how many there are to be.
        runs: runs of Dagster in a session; each has thirty events, or polls its share.
        at_once: so many of them go through the loop at once, the others are polled.
    """
    fork = multiprocessing.get_context("fork")
    with contextlib.suppress(KeyboardInterrupt):
        while (done := len(nights_until_now(out))) < sessions:
            until = max(done + 1, min(at_once, sessions))
            process = fork.Process(target=run_sessions, args=(out, until, runs, at_once))
            process.start()
            process.join()
            if len(nights_until_now(out)) != until:
                break
    return nights_until_now(out)


def run_sessions(out: Path, sessions: int, runs: int, at_once: int) -> None:
    """Runs the sessions that are missing; a line of `nights.jsonl` is left by every night.

    Sizes are in MB by area; arguments as for `year`.
    """
    begun = time.perf_counter()
    home = out / "dagster_home"
    os.environ |= {
        "HEDGE_DATA_URL": str(out / "data"),
        "HEDGE_MODE": "live",
        "HEDGE_SYMBOLS": "SIMQ",
        "HEDGE_SOURCE": "simulated",
        "HEDGE_CALENDAR": "XNYS",
        "HEDGE_RETENTION_DAYS": str(RETENTION_DAYS),
        "HEDGE_BACKUP_URL": str(out / "backup"),
        "HEDGE_BACKUP_KEEP": str(BACKUPS_KEPT),
        "DAGSTER_HOME": str(home),
    }
    settings = load_settings()
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parents[1] / "dagster.yaml", home)
    registry = MlflowRegistry(
        settings.tracking_uri, artifacts=settings.artifacts, plots=False, newest=VERSIONS_KEPT
    )
    deployment = open_deployment(settings)
    labels = deployment.calendar.labels[:sessions]
    nights = nights_until_now(out)
    with dg.DagsterInstance.from_config(str(home)) as instance:

        def moment_of(sessions_ago: int) -> float | None:
            return nights[1 - sessions_ago]["at"] if len(nights) >= sessions_ago else None

        def night(label: str) -> None:
            now = dt.datetime.now(dt.UTC).timestamp()
            closes = deployment.calendar.session(label).closes
            evening = replace(deployment, clock=lambda: closes + stages.SETTLING)
            registry.publish(deployment, "SIMQ")
            leave_ticks(instance, moment_of(TICKS_KEPT_SESSIONS))
            age(out / "data", label)
            loop: Any = SimpleNamespace(
                deployment=evening, registry=SimpleNamespace(open=lambda: registry)
            )
            old = dt.datetime.fromtimestamp(moment_of(RUNS_KEPT_SESSIONS) or 0.0, dt.UTC)
            for name, work in housekeeping.steps(instance, loop, before=old):
                said = work()
                if len(nights) % 21 == 20:
                    print(label, name, said, flush=True)
            areas = storage.report(deployment, places(settings), None)["areas"]
            areas["backup"] = size_of(out / "backup")
            sizes = {x: areas[x] / 1e6 for x in AREAS}
            seconds = time.perf_counter() - begun
            nights.append(sizes | {"memory": most_memory_mb(), "at": now, "seconds": seconds})
            with (out / "nights.jsonl").open("a") as file:
                file.write(json.dumps(nights[-1]) + "\n")
            if len(nights) % 21 == 0:
                print(label, {k: round(v, 1) for k, v in nights[-1].items()}, flush=True)

        def stand_in(label: str) -> None:
            if label in labels[: len(nights)]:  # of an earlier call
                return
            for _ in range(runs):
                some_polls.execute_in_process(instance=instance, run_config=QUIET)
            night(label)

        with contextlib.suppress(KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            history = replace(deployment, replay=True)
            replay.replay(history, labels[:at_once], advance=stand_in)
            polled = labels[max(at_once, len(nights)) :]
            poll_sessions(deployment, polled, runs, instance, night)


def poll_sessions(
    opened: Deployment,
    labels: Sequence[str],
    runs: int,
    instance: dg.DagsterInstance,
    night: Callable[[str], None],
) -> None:
    """Polls, closes and learns, session after session.

    Args:
        opened: a live deployment.
        labels: sessions, ascending.
        runs: time boxes of a session, each a run of Dagster.
        instance: where they run.
        night: called after each session.
    """
    if not labels:
        return
    clock = AcceleratedClock(opened.calendar.session(labels[0]).opens)
    deployment = replace(opened, clock=clock)
    until = clock()

    @dg.op
    def poll_until_the_time_box_ends(context: dg.OpExecutionContext) -> None:
        report = LiveReport(context, deployment, report_interval(INTERVAL))
        run_loop(
            deployment,
            run_id=context.run_id,
            interval=INTERVAL,
            until=until,
            sleep=clock.sleep,
            report=report.add,
        )
        report.flush()

    @dg.job
    def poll_market() -> None:
        poll_until_the_time_box_ends()

    for label in labels:
        session = deployment.calendar.session(label)
        clock.sleep((session.opens - clock()).total_seconds())
        box = (session.closes - session.opens) / runs
        for number in range(1, runs + 1):
            # the last one stays until the last bar has come
            until = session.opens + number * box if number < runs else session.closes + box
            poll_market.execute_in_process(instance=instance, run_config=QUIET)
        clock.sleep((session.closes + stages.SETTLING - clock()).total_seconds())
        stages.close_session(deployment, label)
        hour = deployment.retrain_hour or 0
        if stages.retraining_decision(deployment, "SIMQ", hour=hour).retrain:
            stages.train_candidate(deployment, "SIMQ")
            stages.judge(deployment, "SIMQ")
        night(label)


def draw(nights: Sequence[dict[str, float]], path: Path) -> None:
    """The curves: disk by area above, memory below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (disk, memory) = plt.subplots(2, 1, figsize=(8, 6), sharex=True)
    for area in AREAS:
        disk.plot([night[area] for night in nights], label=area)
    disk.set_ylabel("disk, MB")
    disk.legend()
    memory.plot([night["memory"] for night in nights])
    memory.set_ylabel("memory at most, MB")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("sessions")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the year, draws it and reports the last night against the middle of the year."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=252)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--polled", type=int, nargs="?", const=0, metavar="FROM")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/year"))
    arguments = parser.parse_args()
    begun = time.perf_counter()
    at_once = arguments.sessions if arguments.polled is None else arguments.polled
    nights = year(arguments.out, arguments.sessions, arguments.runs, at_once=at_once)
    draw(nights, arguments.out / "year.png")
    middle, last = nights[len(nights) // 2], nights[-1]
    kept = (*AREAS, "memory")
    found = {f"{name}: middle of the year, MB": middle[name] for name in kept}
    found |= {f"{name}: last night, MB": last[name] for name in kept}
    found |= {"minutes": (time.perf_counter() - begun) / 60}
    show(f"{len(nights)} sessions", found, arguments.out / "year.json")


if __name__ == "__main__":
    main()
