"""How a benchmark reports: a table for people, JSON with machine and versions for comparison."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

PACKAGES = ("numpy", "pandas", "pyarrow", "xgboost", "mlflow", "dagster")


def show(title: str, found: dict[str, float], out: Path, *, digits: int = 1) -> None:
    """Prints the numbers and writes them with the machine they were measured on."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:,.{digits}f}")
    Console().print(table)
    write(title, found, out)


def side_by_side(title: str, columns: Mapping[str, Mapping[str, str | float]], out: Path) -> None:
    """The same measures of several candidates, one column each; all have the same names."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    for name in columns:
        table.add_column(name, justify="right")
    for measure in next(iter(columns.values())):
        table.add_row(measure, *(str(column[measure]) for column in columns.values()))
    Console().print(table)
    write(title, columns, out)


def write(title: str, found: Mapping[str, object], out: Path) -> None:
    """Writes numbers as JSON with the machine and the versions they were measured with."""
    record = {
        "title": title,
        "machine": {"cores": os.cpu_count(), "platform": platform.platform()},
        "versions": {"python": platform.python_version()} | {x: version(x) for x in PACKAGES},
        "measured": found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
