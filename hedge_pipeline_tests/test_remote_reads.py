"""What is transferred from S3: the sessions and columns asked for, several at once.

Counted are the bytes and the requests of a real client at an S3 server over HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline.market.tables import FEATURE_ROWS, feature_names
from hedge_pipeline.store import BrokenFile, Store, StoreError
from hedge_pipeline_tests.learning.conftest import feature_rows, session_on
from hedge_pipeline_tests.test_backup import s3 as s3_server

s3 = s3_server
URL = "s3://hedge/remote"
SYMBOLS = tuple(f"S{number:02d}" for number in range(12))
SESSIONS = tuple(session_on(day, bars=390) for day in range(4, 10))
LABELS = tuple(session.label for session in SESSIONS)
COLUMNS = ("symbol", "bar_ts", feature_names()[3])


@dataclass
class Traffic:
    """What was fetched since the last `clear`.

    Attributes:
        requests: key and bytes of every object fetched, or part of one.
        most_at_once: most fetches under way at one moment.
    """

    requests: list[tuple[str, int]] = field(default_factory=list)
    under_way: int = 0
    most_at_once: int = 0

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.requests)

    @property
    def sessions(self) -> set[str]:
        return {key.partition("session=")[2][:10] for key, _ in self.requests}

    def clear(self) -> None:
        self.requests.clear()
        self.most_at_once = 0


@pytest.fixture
def traffic(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Traffic]:
    import s3fs

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    seen = Traffic()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **more: Any) -> Any:
        if method != "get_object":
            return await call(self, method, *arguments, **more)
        seen.under_way += 1
        seen.most_at_once = max(seen.most_at_once, seen.under_way)
        try:
            await asyncio.sleep(0.02)  # as far away as another region
            answer = await call(self, method, *arguments, **more)
            seen.requests.append((str(more.get("Key")), int(answer["ContentLength"])))
        finally:
            seen.under_way -= 1
        return answer

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    yield seen


@pytest.fixture
def whole(traffic: Traffic) -> dict[str, pd.DataFrame]:
    """Feature rows in S3, a megabyte and more in each session, and the same rows here."""
    store = Store(URL)
    kept = {}
    for number, session in enumerate(SESSIONS):
        rng = np.random.default_rng(number)
        values = rng.standard_normal((390, len(feature_names()))).astype(np.float32)
        rows = pd.concat([feature_rows(session, values + x, s) for x, s in enumerate(SYMBOLS)])
        kept[session.label] = rows.reset_index(drop=True)
        if session.label not in store.sessions(FEATURE_ROWS):
            store.replace(FEATURE_ROWS, session.label, rows)
    traffic.clear()
    return kept


def test_only_the_sessions_asked_for_are_transferred(
    traffic: Traffic, whole: dict[str, pd.DataFrame]
) -> None:
    found = Store(URL).read(FEATURE_ROWS, LABELS[1:3])
    pd.testing.assert_frame_equal(
        found, pd.concat([whole[x] for x in LABELS[1:3]], ignore_index=True)
    )
    assert traffic.sessions == set(LABELS[1:3])
    assert traffic.bytes < 2.2 / len(LABELS) * Store(URL).size(FEATURE_ROWS)


def test_only_the_columns_asked_for_are_transferred(
    traffic: Traffic, whole: dict[str, pd.DataFrame]
) -> None:
    found = Store(URL).read(FEATURE_ROWS, LABELS, columns=COLUMNS)
    expected = pd.concat([whole[x] for x in LABELS], ignore_index=True)[list(COLUMNS)]
    pd.testing.assert_frame_equal(found, expected)
    assert traffic.sessions == set(LABELS)
    # three of 56 columns, and the description of every column at the end of each file
    assert traffic.bytes < 0.15 * Store(URL).size(FEATURE_ROWS)
    assert len(traffic.requests) <= 5 * len(LABELS)


def test_what_is_known_already_is_not_transferred_again(
    traffic: Traffic, whole: dict[str, pd.DataFrame]
) -> None:
    store = Store(URL)
    store.read(FEATURE_ROWS, LABELS[:2])
    traffic.clear()
    found = store.read(FEATURE_ROWS, LABELS[:2], columns=COLUMNS, symbols=["S03"])
    assert traffic.requests == []
    expected = pd.concat([whole[x] for x in LABELS[:2]])
    expected = expected.loc[expected["symbol"] == "S03", list(COLUMNS)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected)


def test_sessions_are_transferred_at_the_same_time(
    traffic: Traffic, whole: dict[str, pd.DataFrame]
) -> None:
    Store(URL).read(FEATURE_ROWS, LABELS)
    assert traffic.most_at_once >= 3


def test_a_session_of_several_parts_has_each_key_once(
    traffic: Traffic, whole: dict[str, pd.DataFrame]
) -> None:
    store = Store(URL.replace("remote", "parts"))
    rows = whole[LABELS[0]]
    changed = rows.copy()
    changed[COLUMNS[2]] = changed[COLUMNS[2]].to_numpy() + np.float32(0.5)
    store.append(FEATURE_ROWS, LABELS[0], rows.iloc[: len(rows) // 2])
    store.append(FEATURE_ROWS, LABELS[0], changed)
    found = Store(store.url).read(FEATURE_ROWS, [LABELS[0]], columns=COLUMNS)
    half = len(rows) // 2
    expected = pd.concat([rows.iloc[:half], changed.iloc[half:]])[list(COLUMNS)]
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True))


@pytest.mark.parametrize("columns", [None, COLUMNS], ids=["whole", "columns"])
def test_a_damaged_remote_file_is_one_line(
    traffic: Traffic, whole: dict[str, pd.DataFrame], columns: tuple[str, ...] | None
) -> None:
    store = Store(URL.replace("remote", f"damaged-{columns is None}"))
    store.replace(FEATURE_ROWS, LABELS[0], whole[LABELS[0]])
    (name,) = store.names(f"{FEATURE_ROWS.name}/session={LABELS[0]}")
    path = f"{FEATURE_ROWS.name}/session={LABELS[0]}/{name}"
    store.write_bytes(path, store.read_bytes(path)[:-1000])
    with pytest.raises(BrokenFile, match="is no whole Parquet file") as error:
        Store(store.url).read(FEATURE_ROWS, [LABELS[0]], columns=columns)
    assert "\n" not in str(error.value)


def test_a_remote_file_of_another_version_is_refused(
    traffic: Traffic, whole: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    store = Store(URL.replace("remote", "other"))
    folder = f"{FEATURE_ROWS.name}/session={LABELS[0]}"
    file = tmp_path / "other.parquet"
    whole[LABELS[0]].drop(columns=feature_names()[7]).to_parquet(file)
    store.write_bytes(f"{folder}/session-000000-other.parquet", file.read_bytes())
    with pytest.raises(StoreError, match="written by another version"):
        store.read(FEATURE_ROWS, [LABELS[0]], columns=COLUMNS)
