"""Canary secrets in every setting that may hold one: none turns up anywhere it is written."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hedge_pipeline_tests.replays import one_after_the_other

CANARY = "canary7f3a"


def unpacked(content: bytes) -> bytes:
    """Content of a file, and of a Parquet or gzip file what is packed in it."""
    if content.startswith(b"PAR1"):
        return content + repr(pq.read_table(io.BytesIO(content)).to_pylist()).encode()
    if content.startswith(b"\x1f\x8b"):
        return unpacked(gzip.decompress(content))
    return content


def test_a_secret_is_found_in_what_is_packed() -> None:
    import pyarrow as pa

    buffer = io.BytesIO()
    rows = pa.table({"source": [f"at {CANARY}:{number}" for number in range(400)]})
    pq.write_table(rows, buffer, compression="zstd", write_statistics=False)
    assert CANARY.encode() not in buffer.getvalue()
    assert CANARY.encode() in unpacked(gzip.compress(buffer.getvalue()))


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
        # one poll: the next is not within the time box
        "POLLING_INTERVAL": "3600",
        "HEDGE_POLL_RUN_MINUTES": "1",
    }
    said, errors = one_after_the_other(
        ("bootstrap", "--days", "10"),
        ("status", "--json"),
        ("doctor",),
        ("health", "--json"),
        ("backup",),
        ("job", "housekeeping"),
        ("alert-test",),
        ("job", "poll_market"),
        cwd=tmp_path,
        **variables,
    )
    assert [code for code, _ in said][:2] == [0, 0], errors[-3000:]
    # nothing can be saved or told there, and all three say so
    assert [code for code, _ in said][4:] == [1, 1, 1, 0], errors[-3000:]
    assert "cannot be" in errors
    assert len(errors) > 1000  # it did log
    assert CANARY not in errors + "".join(text for _, text in said)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".parquet", ".db", ".ubj", ".json"} <= {path.suffix for path in written}
    assert [path for path in written if CANARY.encode() in unpacked(path.read_bytes())] == []
