"""What `hedge` prints: tables, progress and single lines, for people and for programs.

Standard output is the answer, standard error what was told besides it. Rich leaves colours out
where there is no terminal or NO_COLOR is set.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from hedge_pipeline.replay import Night

console = Console()
errors = Console(stderr=True)


def tell_error(line: str) -> None:
    """One line on standard error after "error:", in red."""
    errors.print(f"error: {line}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def warn(line: str) -> None:
    """One line on standard error, however wide the terminal is."""
    errors.print(line, markup=False, highlight=False, soft_wrap=True)


def progress(quiet: bool, unit: str = "sessions") -> Progress:
    """A bar on standard error that is gone when it ends; none where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        console=errors,
        disable=quiet or not errors.is_terminal,  # elsewhere it leaves an empty line
        transient=True,
    )


def tell_night(night: Night, out: Console) -> None:
    """Says what a night brought, if it changed something."""
    if night.fold is None or night.fold.event is None:
        return
    proven = night.fold.event.kind == "skill_proven"
    words = "skill proven" if proven else night.fold.entry["reason"]
    out.print(
        f"{night.session} {night.symbol}: {words}",
        style="green" if proven else "yellow",
        highlight=False,
        soft_wrap=True,
    )


def print_json(value: Any) -> None:
    """JSON on standard output; what JSON does not know, as text."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_summary(summary: dict[str, Any], out: Path, as_json: bool) -> None:
    """What a replay came to; see `replay.summarize`."""
    if as_json:
        print_json(summary)
        return
    wide = console.width >= 100
    table = Table(
        title=f"{summary['sessions']} sessions replayed into {out}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    names = ["symbol", "predictions", "accuracy", "95 %", "base rate"]
    for name in names + ["log-loss", "of base rate"] * wide + ["skill", "trust"]:
        table.add_column(name, justify="left" if name in ("symbol", "skill") else "right")
    for symbol, part in summary["per_symbol"].items():
        skill = summary["skill"][symbol]
        losses = [_number(part["log_loss"], 5), _number(part["base_log_loss"], 5)]
        table.add_row(
            symbol,
            f"{part['predictions']:,}",
            *_accuracy_cells(part["accuracy"]),
            *losses * wide,
            skill["state"],
            _number(skill["trust"], 2),
        )
    console.print(table)
    say(
        f"{summary['bars']:,} bars, {summary['gaps']:,} gaps, {summary['retrains']} retrainings, "
        f"{summary['promotions']} promotions"
    )
    say(
        f"{summary['seconds']:.0f} s ({summary['seconds_training']:.0f} s training), "
        f"{summary['peak_rss_mb']:.0f} MB, "
        f"{summary['bytes_per_1000_predictions'] / 1000:.0f} kB per 1,000 predictions"
    )


def say_mark(ok: bool, text: str) -> None:
    """One line of plain text after ok or FAIL."""
    console.print("[green]ok[/]  " if ok else "[red]FAIL[/]", end=" ")
    say(text)


def say(text: str) -> None:
    """One line of plain text, however wide the terminal is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_status(found: dict[str, Any]) -> None:
    """What `status.status` found: a column for each symbol, the newest sessions, the disk."""
    table = Table(title=f"{found['data']} ({found['mode']})", title_justify="left")
    table.add_column("")
    for symbol in found["symbols"]:
        table.add_column(symbol)
    for name, cell in _STATUS_ROWS.items():
        table.add_row(name, *(cell(part) for part in found["symbols"].values()))
    console.print(table)
    if found["legacy"] is not None:
        say(_legacy_words(found["legacy"]))
    if not found["sessions"]:
        say("no session is stored yet: start `hedge up`, or run `hedge bootstrap`")
        return
    sessions = Table(title="newest sessions", title_justify="left")
    for name in ("session", "bars", "gaps", "coverage", "predictions", "abstentions", "matured"):
        sessions.add_column(name, justify="left" if name == "session" else "right")
    for row in found["sessions"]:
        share = row["coverage"]
        cells = {**row, "coverage": "-" if share is None else f"{100 * share:.1f} %"}
        sessions.add_row(*(str(value) for value in cells.values()))
    console.print(sessions)
    total = sum(found["disk_bytes"].values())
    parts = ", ".join(f"{k} {v / 1e6:.1f}" for k, v in found["disk_bytes"].items() if v)
    measured = f" ({found['disk_measured_at']})" if found["disk_measured_at"] else ""
    console.print(f"disk {total / 1e6:.1f} MB{measured}: {parts}", highlight=False)


def watched_table(found: dict[str, Any], trouble: str) -> Table:
    """One look of `watching.look` at all symbols; `trouble` is why there is no newer one."""
    now = dt.datetime.fromisoformat(found["now"])
    if found["session"] is None:
        title = "no session is stored yet: start `hedge up`, or run `hedge bootstrap`"
    elif not found["open"]:
        title = f"session {found['session']} is over; this is how it ended"
    else:
        title = f"session {found['session']} is open"
    if found["last_poll"] is not None:
        title += f"; last poll {_ago(now, found['last_poll'])}"
    table = Table(
        title=escape(title),
        title_justify="left",
        caption=escape(trouble) or f"{now:%H:%M:%S} UTC",
        caption_justify="left",
        caption_style="bold red" if trouble else "dim",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("symbol", "price", "below", "above", "P(up)", "signal", "hit rate", "bar, UTC"):
        left = name in ("symbol", "signal")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "signal")
    for symbol, part in found["symbols"].items():
        state = f"{symbol}\n{part['skill'] or ''}"
        table.add_row(state, *_watched_cells(part, now, running=found["open"]))
    return table


def _watched_cells(part: dict[str, Any], now: dt.datetime, *, running: bool) -> Iterator[str]:
    """Cells of one symbol; three short lines each, so that 80 columns hold them."""
    if part["price"] is None:
        yield from ("-",) * 7
        return
    color = "green" if part["change_pct"] >= 0 else "red"
    yield f"{part['price']:.2f}\n[{color}]{part['change_pct']:+.2f} %[/]"
    for level in (part["below"], part["above"]):
        yield (
            "-"
            if level is None
            else f"{level['price']:.2f}\n{level['distance_pct']:+.2f} %\n{level['kind']}"
        )
    version = f"v{part['model_version']}" if part["model_version"] else "no model"
    yield f"{_number(part['probability'], 3)}\n{part['prediction'] or 'abstains'}\n{version}"
    color, word = ("bold green", "FIRED") if part["signal"] else ("dim", _why(part))
    yield f"[{color}]{word}[/]\n{part['signals']} signals"
    base = _number(part["base_hit_rate"], 3)
    yield f"{_number(part['hit_rate'], 3)}\nbase {base}\nof {part['matured']}"
    begun = dt.datetime.fromisoformat(part["bar"])
    age = f"\n{_ago(now, part['bar'])}" if running else ""
    yield f"{begun:%H:%M}{age}\nlag {part['lag_seconds']:.0f} s"


def _why(part: dict[str, Any]) -> str:
    return escape(part["reason"] or "-").partition(":")[0].replace("_", " ")


def _ago(now: dt.datetime, moment: str) -> str:
    seconds = (now - dt.datetime.fromisoformat(moment)).total_seconds()
    return f"{seconds:.0f} s ago" if seconds < 180 else f"{seconds / 60:.0f} min ago"


def _legacy_words(legacy: dict[str, Any]) -> str:
    """The rows of the system before this one, in one line."""
    parts = []
    for name in ("predictions", "signals"):
        part = legacy[name]
        words = f"{name} {part['count']:,} ({part['outside_sessions']:,} outside the sessions)"
        if part["scored"]:
            words += (
                f", accuracy {part['accuracy']:.3f} on {part['scored']:,} of its own outcomes, "
                f"share of ups {part['share_of_ups']:.3f}"
            )
        parts.append(words)
    parts.append(
        f"outcomes {legacy['outcomes']:,} ({legacy['contradicting_prices']:,} against their own "
        "prices)"
    )
    parts.append(f"rows of features {legacy['feature_rows']:,}")
    return f"{legacy['counts_as']}: {'; '.join(parts)}"


def _version_cell(version: dict[str, Any] | None) -> str:
    if version is None:
        return "none"
    return f"{version['version']}: {_accuracy_words(version['accuracy'])}"


def _accuracy_words(accuracy: dict[str, Any]) -> str:
    if accuracy["value"] is None:
        return "no outcome of its predictions yet"
    return "accuracy {} {}, base rate {}".format(*_accuracy_cells(accuracy))


def _skill_words(part: dict[str, Any]) -> str:
    """The state of the evidence: green if skill is proven, red if it was lost."""
    if part["skill"] == "unproven":
        return f"unproven: {part['evidence']}"
    return f"[{'green' if part['skill'] == 'proven' else 'red'}]{escape(part['evidence'])}[/]"


_STATUS_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "skill": _skill_words,
    "trust": lambda part: _number(part["trust"], 3),
    "predictions": lambda part: f"{part['predictions']:,} ({part['abstentions']:,} abstentions)",
    "scored outcomes": lambda part: f"{part['matured_outcomes']:,}",
    "new samples": lambda part: f"{part['new_samples']} of {part['needed_samples']}",
    "accuracy": lambda part: _accuracy_words(part["accuracy"]).removeprefix("accuracy "),
    "newest version": lambda part: _version_cell(part["newest_version"]),
    "champion": lambda part: _version_cell(part["champion_version"]),
    "feature drift": lambda part: str(part["feature_drift"]),
    "performance drift": lambda part: str(part["performance_drift"]),
    "retraining": lambda part: str(part["retraining"]),
    "pinned": lambda part: str(part["pinned_version"] or "none"),
    "trained on sessions to": lambda part: str(part["trained_through"] or "never"),
    "last verdict": lambda part: (
        f"{part['last_verdict']['verdict']}: {part['last_verdict']['reason']}"
        if part["last_verdict"]
        else "none"
    ),
}


def _accuracy_cells(accuracy: dict[str, Any]) -> tuple[str, str, str]:
    interval = (
        f"[{accuracy['lo']:.3f}, {accuracy['hi']:.3f}]" if accuracy["lo"] is not None else "-"
    )
    return (
        _number(accuracy["value"], 3),
        interval.replace("[", r"\["),
        _number(accuracy["base_rate"], 3),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def say_how_to_look(out: Path) -> None:
    """The commands that open a demo in Dagster and in MLflow, ready to be copied."""
    from hedge_pipeline.resources import views

    programs = Path(sys.executable).parent
    if programs.is_relative_to(Path.cwd()):
        programs = programs.relative_to(Path.cwd())
    say(f"\nPlot against the truth: {out / 'demo.png'}")
    say("Look at the loop in Dagster, http://127.0.0.1:3000, and at every version in MLflow,")
    say(f"http://127.0.0.1:5000/{views.HOME}:")
    home = f"$PWD/{out}" if not out.is_absolute() else out
    say(
        f"  DAGSTER_HOME={home}/dagster_home HEDGE_DATA_URL={out} HEDGE_MODE=replay "
        f"{programs}/dagster dev -w workspace.yaml"
    )
    say(
        f"  MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {programs}/mlflow server --app-name hedge "
        f"--workers 1 --backend-store-uri sqlite:///{out}/mlflow.db "
        f"--artifacts-destination {out}/mlartifacts"
    )


def print_history(symbol: str, entries: Sequence[dict[str, Any]]) -> None:
    """The promotion log of a symbol, oldest first."""
    table = Table(title=f"{symbol}: what changed, oldest first", title_justify="left")
    for name in ("when (UTC)", "event", "version", "served", "champion", "evidence", "reason"):
        table.add_column(name)
    for row in entries:
        numbers = (str(row[name] or "-") for name in ("version", "served", "champion"))
        table.add_row(
            row["decided_at"][:16].replace("T", " "),
            row["event"],
            *numbers,
            f"{row['evidence']:.3g}",
            escape(row["reason"]),
        )
    console.print(table)
