"""Settings as a page: `python -m hedge_pipeline_tests.configuration` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from hedge_pipeline.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

Every setting is a variable of the environment or a line of a `.env` file in the folder the program
is started in; the environment wins. [`.env.example`](../.env.example) has the same list to copy.
A value that is not allowed stops the start with one line that names the variable. `hedge doctor`
says whether source, store, MLflow and clock answer with what is set. `DAGSTER_HOME` is Dagster's
own: where its runs, schedules and sensors are kept; without it `hedge up` takes `dagster_home` in
the data folder.
"""
# by the first variable of each part
PARTS = {
    "HEDGE_SYMBOLS": "What is watched, and where it is kept",
    "HEDGE_BAR_SECONDS": "Labels and models",
    "POLLING_INTERVAL": "Polling",
    "RETRAIN_HOUR": "Retraining",
    "CACHE_TTL": "Option chains and hedge levels",
    "HEDGE_SIGNAL_SIDES": "Signals",
    "HEDGE_ALERT_URLS": "Alerts",
    "HEDGE_COST_BPS": "Scoring of signals",
    "MLFLOW_TRACKING_URI": "The two web UIs",
    "HEDGE_BACKUP_URL": "Backup and room",
    "HEDGE_ALERT_NO_BAR_MINUTES": "Alerts about the service itself",
    "HEDGE_BIND": "Who may look, and the log",
}


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    for field in Settings.model_fields.values():
        if field.alias in PARTS:
            yield from ("", f"## {PARTS[field.alias]}", "")
            yield from ("| variable | default | allowed | meaning |", "|---|---|---|---|")
        cells = (f"`{field.alias}`", _default(field), _allowed(field), str(field.description))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if isinstance(value, bool):
        value = str(value).lower()
    return "empty" if value in ("", None) else f"`{value}`"


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    limits = {
        name: getattr(rule, name)
        for rule in field.metadata
        for name in ("gt", "ge", "le")
        if getattr(rule, name, None) is not None
    }
    if field.annotation is bool:
        return "`true`, `false`"
    if "gt" in limits:
        return f"above {limits['gt']}, at most {limits['le']}"
    if "le" in limits:
        return f"{limits['ge']} to {limits['le']}"
    return f"at least {limits['ge']}" if limits else ""


if __name__ == "__main__":
    PAGE.write_text(page())
