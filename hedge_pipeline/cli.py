"""`hedge`: the loop on the command line. Every command has `--json`; errors are one line."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from typer.core import TyperGroup

from hedge_pipeline import logs
from hedge_pipeline.settings import Settings, SettingsError, load_settings
from hedge_pipeline.terminal import (
    console,
    print_history,
    print_json,
    print_status,
    print_summary,
    progress,
    say,
    say_how_to_look,
    say_mark,
    tell_error,
    tell_night,
    warn,
    watched_table,
)

if TYPE_CHECKING:
    from hedge_pipeline.backup import Snapshot
    from hedge_pipeline.stages import Deployment


class OneLineGroup(TyperGroup):
    """Commands that tell a mistake on the command line in one line, with the next step."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command; exit code 2 says that it was called wrongly."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args)
        if not standalone_mode:
            return run(**extra)
        try:
            sys.exit(run(**extra))
        except typer.Abort:
            sys.exit(1)
        except Exception as error:
            said = getattr(error, "format_message", None)
            if said is None:
                raise
            context = getattr(error, "ctx", None)
            if not said():  # nothing was asked for: this is the help
                error.show()  # type: ignore[attr-defined]
            else:
                program = f"hedge {context.info_name}" if context and context.parent else "hedge"
                tell_error(f"{' '.join(said().split()).rstrip('.')}; see `{program} --help`")
            sys.exit(getattr(error, "exit_code", 2))


app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="A continuous-learning pipeline for market signals, scored on real outcomes.",
)

NAMES_OF_UIS = {"dagster": "Dagster", "mlflow": "MLflow"}
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]
OneSymbol = Annotated[
    str | None, typer.Option("--symbol", help="may be left out if one symbol is watched")
]
Symbols = Annotated[str | None, typer.Option(help="comma-separated symbols")]


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turns every error a user can cause into one line and exit code 1."""
    from hedge_pipeline.backup import BackupError
    from hedge_pipeline.learning.training import ModelError
    from hedge_pipeline.market.calendar import NoSession
    from hedge_pipeline.market.sources import SourceError
    from hedge_pipeline.resources.registry import RegistryError
    from hedge_pipeline.stages import StageError
    from hedge_pipeline.store import StoreError

    known = (SettingsError, StoreError, StageError, SourceError, NoSession, ModelError)
    try:
        yield
    except (*known, RegistryError, BackupError) as error:
        tell_error(" ".join(str(error).split()))
        raise typer.Exit(1) from None


@app.callback()
def main() -> None:
    """Configures logging; see LOG_LEVEL."""
    with _one_line():
        logs.follow(load_settings().log_level)


@app.command()
def replay(
    out: Annotated[
        Path, typer.Option(help="folder of the replay: tables, mlflow.db, summary.json")
    ],
    source: Annotated[str | None, typer.Option(help="market data source")] = None,
    path: Annotated[
        list[str] | None, typer.Option(help="file or folder of the file source; may be repeated")
    ] = None,
    symbols: Symbols = None,
    first: Annotated[str | None, typer.Option("--from", help="first session")] = None,
    last: Annotated[str | None, typer.Option("--to", help="last session")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the simulated market")] = None,
    model_version: Annotated[
        int | None,
        typer.Option(min=1, help="only this version of HEDGE_DATA_URL, without retraining"),
    ] = None,
    registry: Annotated[bool, typer.Option(help="write MLflow runs and versions")] = True,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop over history, as live would have done it."""
    with _one_line():
        settings = _settings(out, source=source, path=path, symbols=symbols, seed=seed)
        summary = _replay(
            settings,
            out,
            first,
            last,
            with_registry=registry,
            quiet=as_json,
            model_version=model_version,
        )
        print_summary(summary, out, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder of the demo")] = Path("demo"),
    sessions: Annotated[int, typer.Option(min=6, help="simulated sessions")] = 100,
    seed: Annotated[int, typer.Option(help="seed of the simulated market")] = 7,
    as_json: AsJson = False,
) -> None:
    """Watch the loop prove a planted edge on SIMQ, lose it, and never prove SIMN."""
    with _one_line():
        from hedge_pipeline.market.sources.simulated import EPOCH
        from hedge_pipeline.opening import open_deployment

        settings = _settings(out, source="simulated", symbols="SIMQ,SIMN", seed=seed)
        deployment = open_deployment(settings)
        labels = deployment.calendar.between(EPOCH, None)[:sessions]
        summary = _replay(settings, out, labels[0], labels[-1], quiet=as_json)
        _plot_demo(deployment, summary, out)
        print_summary(summary, out, as_json)
        if not as_json:
            from hedge_pipeline.resources.history import report_replay

            report_replay(deployment, out / "dagster_home")
            say_how_to_look(out)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show predictions, coverage, versions, skill and disk use."""
    with _one_line():
        from hedge_pipeline.status import status as read_status

        deployment = _open(_live_settings())
        found = read_status(deployment)
        if as_json:
            print_json(found)
        else:
            print_status(found)


@app.command()
def watch(
    interval: Annotated[float, typer.Option(min=0.5, help="seconds between two looks")] = 5,
    once: Annotated[bool, typer.Option("--once", help="one look, then end")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one line of JSON per look")
    ] = False,
) -> None:
    """Watch price, nearest levels, probability, signal and hit rate of the newest session."""
    with _one_line(), contextlib.suppress(KeyboardInterrupt):
        from hedge_pipeline.store import StoreError
        from hedge_pipeline.watching import look

        deployment = _open(_live_settings())
        found, trouble = look(deployment), ""
        with contextlib.ExitStack() as ended:
            live = None
            if console.is_terminal and not once and not as_json:
                live = ended.enter_context(Live(console=console, auto_refresh=False))
            while True:
                if as_json:
                    sys.stdout.write(json.dumps(found) + "\n")
                    sys.stdout.flush()
                elif live is not None:
                    live.update(watched_table(found, trouble), refresh=True)
                else:
                    console.print(watched_table(found, trouble))
                if once:
                    return
                time.sleep(interval)
                try:
                    found, trouble = look(deployment), ""
                except StoreError as error:  # a network comes back
                    trouble = str(error)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="the page; replaced if it is there")] = Path(
        "report.html"
    ),
    as_json: AsJson = False,
) -> None:
    """Write one page that says whether it works: verdict, accuracy, signals, gaps, versions."""
    with _one_line():
        from hedge_pipeline import report as written

        deployment = _open(_live_settings())
        found = written.numbers(deployment)
        try:
            out.write_text(written.page(deployment, found), encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{out} cannot be written: {error.strerror}; see --out") from None
        if as_json:
            print_json({"written": str(out.resolve()), "symbols": written.headline(found)})
            return
        for part in found["symbols"].values():
            say(part["verdict"])
        say(f"written to {out}: open it in a browser; it needs no network")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check configuration, calendar, store, source, MLflow and clock."""
    with _one_line():
        from hedge_pipeline.opening import open_deployment, open_registry
        from hedge_pipeline.status import diagnose

        settings = _live_settings()
        findings = diagnose(settings, open_deployment(settings), open_registry(settings))
        if as_json:
            print_json([vars(finding) for finding in findings])
        else:
            for finding in findings:
                say_mark(finding.ok, f"{finding.name:<14}{finding.message}")
        if not all(finding.ok for finding in findings):
            raise typer.Exit(1)


@app.command()
def retrain(
    symbol: OneSymbol = None,
    min_samples: Annotated[
        int, typer.Option(min=1, help="retrain if there are at least so many new outcomes")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Retrain one symbol now, give the verdict and publish it."""
    with _one_line():
        from hedge_pipeline import opening
        from hedge_pipeline.stages import StageError

        _, watched = _watched(symbol)
        candidate, words = opening.retrain(_live_settings(), watched, min_samples=min_samples)
        if candidate is None:
            raise StageError(f"nothing trained: {words}")
        if as_json:
            print_json(
                {
                    "symbol": watched,
                    "version": candidate.card.version,
                    "new": candidate.new,
                    "cutoff": candidate.card.cutoff,
                    "rows": candidate.card.rows,
                    "verdict": words,
                }
            )
            return
        what = "trained" if candidate.new else "nothing new since"
        say(
            f"{watched}: {what} version {candidate.card.version} on {candidate.card.rows} rows "
            f"of {candidate.card.sessions} sessions to {candidate.card.cutoff}"
        )
        say(words)


@app.command()
def search(
    symbol: OneSymbol = None,
    trials: Annotated[int, typer.Option(min=2, max=1000, help="the defaults included")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="of the proposals")] = 0,
    as_json: AsJson = False,
) -> None:
    """Search hyper-parameters; a find that beats the defaults is used by later trainings."""
    with _one_line():
        from dataclasses import asdict

        from hedge_pipeline import stages

        deployment, watched = _watched(symbol)
        with progress(as_json, "trials") as bar:
            task = bar.add_task("search", total=trials)
            found = stages.search_hyperparameters(
                deployment, watched, trials=trials, seed=seed, advance=lambda: bar.advance(task)
            )
        if as_json:
            print_json({"new": found.new, **asdict(found.record)})
        else:
            say(found.in_words())


@app.command()
def alert_test(as_json: AsJson = False) -> None:
    """Send a test alert to every HEDGE_ALERT_URLS and say what came of it."""
    with _one_line():
        from hedge_pipeline.opening import open_notifier

        notifier = open_notifier(load_settings())
        if not notifier:
            raise SettingsError("HEDGE_ALERT_URLS is empty: there is nobody to tell")
        found = notifier.send("This is a test; no signal fired.", "hedge: test alert")
        if as_json:
            print_json([delivery._asdict() for delivery in found])
        else:
            for delivery in found:
                say_mark(delivery.ok, f"{delivery.url}: {delivery.detail}")
        if not all(delivery.ok for delivery in found):
            raise typer.Exit(1)


@app.command()
def bootstrap(
    days: Annotated[int, typer.Option(min=1, help="calendar days to look back")] = 29,
    as_json: AsJson = False,
) -> None:
    """Fetch what the source still has, with features and outcomes, and train a first model."""
    with _one_line():
        from hedge_pipeline import stages
        from hedge_pipeline.opening import open_registry

        settings = _live_settings()
        deployment = _open(settings)
        sessions = stages.history_window(deployment, days)
        with progress(as_json) as bar:
            task = bar.add_task("bootstrap", total=len(sessions))
            found = stages.bootstrap(
                deployment, sessions, advance=lambda _session: bar.advance(task)
            )
        registry = open_registry(settings)
        for symbol in deployment.symbols:
            registry.publish(deployment, symbol)
        if as_json:
            print_json(found)
        else:
            say(f"{found['sessions']} sessions, {found['bars']:,} bars, {found['gaps']} gaps")
            for symbol, words in found["models"].items():
                say(f"{symbol}: {words}")
            _tell_calendar(settings)
        for line in found["failures"]:
            warn(f"warning: {line}")
        if found["failures"] and not found["bars"]:
            raise typer.Exit(1)


@app.command("import-legacy")
def import_legacy(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="folder with predictions.csv, features.csv, outcomes.csv, or some"
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Import the log of the system before this one; it is shown and never evidence.

    Times without a zone are taken as exchange time (America/New_York for XNYS), others are
    converted to UTC. Every row is imported, known already, or refused with its line and reason;
    the exit code is 1 if one was refused. Running it again changes nothing.
    """
    with _one_line():
        from hedge_pipeline import legacy

        deployment = _open(load_settings())
        found = legacy.import_legacy(
            deployment.store, deployment.calendar, folder, deployment.clock()
        )
        if as_json:
            print_json(found.to_json())
        else:
            sys.stdout.writelines(f"{line}\n" for line in found.in_words())
        if not found.ok:
            raise typer.Exit(1)


@app.command()
def up(
    headless: Annotated[bool, typer.Option(help="without the two web UIs")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the Dagster UI")] = 3000,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="of the MLflow UI")] = 5000,
    configuration: Annotated[Path, typer.Option(help="of Dagster, for a new DAGSTER_HOME")] = Path(
        "dagster.yaml"
    ),
    prepare: Annotated[
        bool, typer.Option("--prepare", help="only make DAGSTER_HOME ready, then end")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the service: polling, closing, retraining, and both web UIs. Ctrl-C stops all of it."""
    with _one_line():
        from hedge_pipeline import service

        settings = _live_settings()
        if not configuration.exists():
            raise SettingsError(f"{configuration} is not here: run this in the project's folder")
        if prepare:
            home = service.dagster_home(settings)
            with service.claim(home):
                left_over = service.prepare(home, configuration)
            if as_json:
                print_json({"left_over_runs": left_over})
            else:
                say(service.left_over_words(left_over))
            return
        _open(settings)
        ports = service.Ports(port, mlflow_port)
        pages = {} if headless else service.addresses(settings, ports)
        if as_json:
            print_json(pages)
            sys.stdout.flush()
        else:
            _tell_calendar(settings)
            for name, page in pages.items():
                say(f"{NAMES_OF_UIS[name]:<8}{page}")
        service.serve(settings, ports, configuration, headless=headless)


# -- history and control ---------------------------------------------------------------------------

Reason = Annotated[str, typer.Option(help="why; it stays in the promotion log")]


@app.command()
def history(symbol: OneSymbol = None, as_json: AsJson = False) -> None:
    """Show who was champion when, and why: every verdict, change of skill and override."""
    with _one_line():
        from hedge_pipeline import control

        deployment, watched = _watched(symbol)
        found = control.history(deployment, watched)
        if as_json:
            print_json(found)
            return
        print_history(watched, found)


@app.command()
def promote(
    version: Annotated[int, typer.Option(min=1, help="accepted version to serve from now on")],
    reason: Reason,
    symbol: OneSymbol = None,
    as_json: AsJson = False,
) -> None:
    """Pin a version: it is served until `hedge rollback`. The evidence is untouched."""
    with _one_line():
        from hedge_pipeline import control

        deployment, watched = _watched(symbol)
        _tell_override(control.pin(deployment, watched, version, reason), as_json)


@app.command()
def rollback(reason: Reason, symbol: OneSymbol = None, as_json: AsJson = False) -> None:
    """Go one step back: let a pinned version go, or pin the one before the newest."""
    with _one_line():
        from hedge_pipeline import control

        deployment, watched = _watched(symbol)
        _tell_override(control.roll_back(deployment, watched, reason), as_json)


@app.command("rebuild-evidence")
def rebuild_evidence(symbol: OneSymbol = None, as_json: AsJson = False) -> None:
    """Fold every session again from predictions and outcomes; must equal the stored state."""
    with _one_line():
        from hedge_pipeline import control
        from hedge_pipeline.learning import gate
        from hedge_pipeline.stages import StageError

        deployment, watched = _watched(symbol)
        found = control.rebuild_evidence(deployment, watched)
        if found.differs is not None:
            raise StageError(
                f"{watched}: the stored state of session {found.differs} is not what predictions "
                "and outcomes give; a table was changed after the fold"
            )
        words = gate.evidence_in_words(found.state, deployment.rule)
        if as_json:
            print_json(
                {
                    "symbol": watched,
                    "sessions": found.sessions,
                    "forgotten": found.forgotten,
                    "equal": True,
                    "evidence": words,
                }
            )
            return
        say(f"{watched}: {found.sessions} sessions folded again, equal to the log; {words}")
        if found.forgotten:
            say(
                f"{found.forgotten} sessions before them are forgotten (HEDGE_RETENTION_DAYS) "
                "or were folded by an earlier form of the rule"
            )


def _watched(symbol: str | None) -> tuple[Deployment, str]:
    """The deployment of the settings and the symbol that is meant."""
    from hedge_pipeline.stages import StageError

    settings = _live_settings()
    watched = ", ".join(settings.symbols)
    if symbol is None and len(settings.symbols) > 1:
        raise StageError(f"name one of {watched} with --symbol")
    meant = settings.symbols[0] if symbol is None else symbol.upper()
    if meant not in settings.symbols:
        raise StageError(f"{meant} is not watched; HEDGE_SYMBOLS has {watched}")
    return _open(settings), meant


def _tell_override(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        names = ("symbol", "event", "model_version", "number", "decided_at", "reason")
        print_json({name: entry[name] for name in names})
        return
    pinned = entry["event"] == "pin"
    what = "is served from now on" if pinned else "is let go, the newest accepted one serves"
    say(f"{entry['symbol']}: version {entry['model_version']} {what}; {entry['reason']}")


# -- room and health -------------------------------------------------------------------------------


@app.command()
def storage(
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="first move broken files aside")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the deployment takes of the disk; exit code 1 if that is too much."""
    with _one_line():
        from hedge_pipeline import storage as room
        from hedge_pipeline.opening import open_deployment, places

        settings = _live_settings()
        deployment = open_deployment(settings)
        for path in room.quarantine(deployment) if quarantine else ():
            warn(f"moved aside: {path}")
        found = room.report(deployment, places(settings), settings.disk_budget_mb)
        wrong = room.trouble(found)
        if as_json:
            print_json(found | {"trouble": wrong})
        else:
            for name, size in {**found["areas"], "total": found["total_bytes"]}.items():
                say(f"{name:<10}{size / 1e6:>10.1f} MB")
            say(f"{found['sessions']} sessions since {found['first_session']}")
            for path in found["quarantined"]:
                say(f"broken, moved aside: {path}")
            if wrong:
                say(wrong)
        if wrong:
            raise typer.Exit(1)


@app.command()
def health(as_json: AsJson = False) -> None:
    """Say whether the service does its work; exit code 1 if not. Made for a container's probe."""
    with _one_line():
        from hedge_pipeline import health as condition
        from hedge_pipeline.opening import open_deployment, places

        settings = _live_settings()
        deployment = open_deployment(settings)
        found = condition.facts(deployment, places(settings).home)
        wrong = condition.service_troubles(deployment, settings, found)
        shown = condition.as_json(found, wrong, deployment)
        if as_json:
            print_json(shown)
        else:
            say("healthy" if shown["healthy"] else "NOT healthy")
            for trouble in wrong:
                say(trouble.message)
        if not shown["healthy"]:
            raise typer.Exit(1)


# -- backup ----------------------------------------------------------------------------------------


def _backup_url(url: str | None) -> str:
    found = url or load_settings().backup_url.get_secret_value()
    if not found:
        raise SettingsError("HEDGE_BACKUP_URL is empty: name a folder or URL")
    return found


@app.command()
def backup(
    url: Annotated[str | None, typer.Argument(help="folder or URL; HEDGE_BACKUP_URL")] = None,
    as_json: AsJson = False,
) -> None:
    """Save tables, models, MLflow and Dagster; writes only what the place has not got yet."""
    with _one_line():
        from hedge_pipeline.backup import back_up
        from hedge_pipeline.opening import places

        done = back_up(places(load_settings()), _backup_url(url))
        if as_json:
            print_json(_snapshot(done.snapshot) | {"new": done.new, "new_bytes": done.new_bytes})
        else:
            say(
                f"snapshot {done.snapshot.name}: {done.snapshot.count} files, "
                f"{done.snapshot.size / 1e6:.1f} MB; new {done.new}, {done.new_bytes / 1e6:.1f} MB"
            )
            if not done.snapshot.at_one_moment:
                say("not of one moment: the tables changed all the time while they were copied")
            for line in done.snapshot.left_out:
                say(f"not included: {line}")
        if done.damaged:
            raise typer.Exit(1)


@app.command()
def restore(
    url: Annotated[str | None, typer.Argument(help="folder or URL; HEDGE_BACKUP_URL")] = None,
    snapshot: Annotated[str | None, typer.Option(help="its name or how it begins; newest")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="check it and write nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a backup back into an empty place and verify every file."""
    with _one_line():
        from hedge_pipeline import backup as saved
        from hedge_pipeline.opening import places

        if verify:
            found = saved.verify(_backup_url(url), snapshot)
        else:
            found = saved.restore(places(load_settings()), _backup_url(url), snapshot)
        if as_json:
            print_json(_snapshot(found))
            return
        what = "verified" if verify else "restored and verified"
        say(f"snapshot {found.name}: {found.count} files, {found.size / 1e6:.1f} MB {what}")
        for line in found.left_out:
            say(f"not included: {line}")


def _snapshot(found: Snapshot) -> dict[str, Any]:
    return {
        "snapshot": found.name,
        "created": found.created,
        "files": found.count,
        "bytes": found.size,
        "at_one_moment": found.at_one_moment,
        "left_out": list(found.left_out),
    }


# -- replay and demo -------------------------------------------------------------------------------


def _tell_calendar(settings: Settings) -> None:
    from hedge_pipeline.opening import ALWAYS_OPEN

    if settings.source == "simulated" and settings.calendar == ALWAYS_OPEN:
        say("the simulated market is always open: HEDGE_CALENDAR=24/7")


def _live_settings() -> Settings:
    from hedge_pipeline.opening import live_settings

    return live_settings(load_settings())


def _open(settings: Settings) -> Deployment:
    """The deployment of the settings, unless its store is a replay's and they are not."""
    from hedge_pipeline.opening import open_deployment
    from hedge_pipeline.replay import check_mode

    deployment = open_deployment(settings)
    check_mode(deployment)
    return deployment


def _settings(
    out: Path,
    *,
    source: str | None = None,
    path: list[str] | None = None,
    symbols: str | None = None,
    seed: int | None = None,
) -> Settings:
    """Settings of a replay into a folder; options win over the environment."""
    given: dict[str, Any] = {
        "HEDGE_DATA_URL": str(out),
        "HEDGE_MODE": "replay",
        "MLFLOW_TRACKING_URI": "",
        "HEDGE_SOURCE": source,
        "HEDGE_SOURCE_PATH": tuple(path) if path else None,
        "HEDGE_SYMBOLS": symbols,
        "HEDGE_SEED": seed,
    }
    return load_settings(**{name: value for name, value in given.items() if value is not None})


def _replay(
    settings: Settings,
    out: Path,
    first: str | None,
    last: str | None,
    *,
    with_registry: bool = True,
    quiet: bool = False,
    model_version: int | None = None,
) -> dict[str, Any]:
    from hedge_pipeline import control
    from hedge_pipeline import replay as loop
    from hedge_pipeline.opening import open_deployment
    from hedge_pipeline.resources.publishing import BackgroundRegistry
    from hedge_pipeline.store import Store

    begun = time.perf_counter()
    deployment = open_deployment(settings)
    sessions = _sessions(deployment, first, last)
    loop.check_symbols(deployment, sessions[0])
    loop.claim(
        deployment,
        {
            "source": settings.source,
            "symbols": list(settings.symbols),
            "first session": sessions[0],
            "calendar": settings.calendar,
            "bar length": settings.bar_seconds,
            "horizon": settings.horizon_bars,
            "seed": settings.seed if settings.source == "simulated" else None,
            "model version": model_version,
        },
    )
    if model_version is not None:
        models = Store(load_settings().data_url)
        cards = control.freeze(deployment, models, model_version, sessions[0])
        for symbol, card in cards.items():
            if card.cutoff >= sessions[0]:
                warn(
                    f"warning: {symbol} version {model_version} was trained on sessions to "
                    f"{card.cutoff}; its scores up to then are in-sample"
                )
    registry = None
    with contextlib.ExitStack() as ended:
        if with_registry:
            registry = BackgroundRegistry(settings)
            ended.callback(registry.close)
        bar = ended.enter_context(progress(quiet))
        task = bar.add_task("replay", total=len(sessions))
        stopwatch = loop.replay(
            deployment,
            sessions,
            registry=registry,
            train=model_version is None,
            watch=lambda night: None if quiet else tell_night(night, bar.console),
            advance=lambda _session: bar.advance(task),
        )
    if registry is not None and registry.failure is not None:
        warn(f"warning: {registry.failure}")
    summary = loop.summarize(deployment, stopwatch, time.perf_counter() - begun)
    deployment.store.write_bytes("summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _sessions(deployment: Deployment, first: str | None, last: str | None) -> tuple[str, ...]:
    """Sessions to replay: from the first to the last the source has, or as asked."""
    from hedge_pipeline.market.sources.file import FileSource
    from hedge_pipeline.stages import StageError

    for label in (first, last):
        if label is not None and not _is_date(label):
            raise StageError(f"{label!r} is no ISO date (YYYY-MM-DD)")
    source = deployment.source
    if isinstance(source, FileSource):
        first = max(first or source.sessions[0], source.sessions[0])
        last = min(last or source.sessions[-1], source.sessions[-1])
    closed = deployment.calendar.closed_by(deployment.clock())
    found = deployment.calendar.between(first, min(last or closed or "", closed or ""))
    if not found:
        raise StageError(
            f"no session of {deployment.calendar.name} that is over lies between "
            f"{first or deployment.calendar.start} and {last or 'today'}"
        )
    return found


def _is_date(label: str) -> bool:
    """Whether it is YYYY-MM-DD; other ISO forms do not sort like the labels of sessions."""
    try:
        return dt.date.fromisoformat(label).isoformat() == label
    except ValueError:
        return False


def _plot_demo(deployment: Deployment, summary: dict[str, Any], out: Path) -> None:
    from hedge_pipeline.resources import plots
    from hedge_pipeline.truth import skill_against_oracle

    events = {symbol: skill["events"] for symbol, skill in summary["skill"].items()}
    figure = plots.against_oracle(skill_against_oracle(deployment), events)
    figure.savefig(out / "demo.png", facecolor="white")


if __name__ == "__main__":
    app()
