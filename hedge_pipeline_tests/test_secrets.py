"""Canary secrets in every setting that may hold one: none turns up anywhere it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from hedge_pipeline_tests.replays import one_after_the_other

CANARY = "canary7f3a"


@pytest.mark.slow
def test_no_secret_reaches_a_log_an_event_a_table_or_mlflow(tmp_path: Path) -> None:
    """A deployment that collects, trains, publishes, keeps house and fails to alert and save."""
    data = tmp_path / "data"
    home = tmp_path / "home"
    home.mkdir()
    variables = {
        "DAGSTER_HOME": str(home),
        "HEDGE_DATA_URL": str(data),
        "HEDGE_SYMBOLS": "SIMQ",
        "HEDGE_CALENDAR": "24/7",
        "HEDGE_ALERT_URLS": f"json://{CANARY}:{CANARY}@127.0.0.1:9/{CANARY}",
        "HEDGE_BACKUP_URL": f"ftp://{CANARY}:{CANARY}@127.0.0.1:9/backup",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "LOG_LEVEL": "DEBUG",
    }
    said, errors = one_after_the_other(
        ("bootstrap", "--days", "10"),
        ("status", "--json"),
        ("doctor",),
        ("health", "--json"),
        ("backup",),
        ("job", "housekeeping"),
        cwd=tmp_path,
        **variables,
    )
    assert [code for code, _ in said][:2] == [0, 0], errors[-3000:]
    assert [code for code, _ in said][4:] == [1, 1]  # nothing can be saved there, and both say so
    assert "cannot be" in errors
    assert len(errors) > 1000  # it did log
    assert CANARY not in errors + "".join(text for _, text in said)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".parquet", ".db", ".ubj", ".json"} <= {path.suffix for path in written}
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []
