"""Training rows: features joined with matured outcomes, cut at session boundaries.

Labels come from the outcomes table only, so from observed prices. A session enters whole or not at
all: labels never cross a close, so cutting between sessions is the purge. Whoever scores a model on
rows left out divides them by `walk_forward.Fold`, which refuses every other cut.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import mmap
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hedge_pipeline.market.calendar import to_datetime64
from hedge_pipeline.market.tables import (
    FEATURE_ROWS,
    OUTCOMES,
    feature_names,
    in_pandas,
    places_among,
)
from hedge_pipeline.probability import sigmoid

if TYPE_CHECKING:
    import pyarrow as pa

    from hedge_pipeline.learning.training import TrainingPlan
    from hedge_pipeline.store import Store

_REMEMBERED_BYTES = 256 << 20
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class LabelledSession:
    """Labelled rows of one symbol and session.

    Attributes:
        features: float32 [rows, features], NaN = unknown.
        labels: float64 [rows], 1 up and 0 down; flat and unlabelable bars are left out.
        bar_ts: datetime64[us] [rows], UTC, ascending.
        known_at: datetime64[us] [rows], UTC; when both features and outcome could be known.
        digest: sha256 over features and labels.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float64]
    bar_ts: npt.NDArray[np.datetime64]
    known_at: npt.NDArray[np.datetime64]
    digest: str

    @classmethod
    def of(
        cls,
        features: npt.NDArray[np.float32],
        labels: npt.NDArray[np.float64],
        bar_ts: npt.NDArray[np.datetime64],
        known_at: npt.NDArray[np.datetime64],
    ) -> LabelledSession:
        """With the digest computed."""
        digest = hashlib.sha256(np.ascontiguousarray(features).data)
        digest.update(np.ascontiguousarray(labels).data)
        return cls(features, labels, bar_ts, known_at, digest.hexdigest())

    @property
    def nbytes(self) -> int:
        """Memory of its arrays."""
        return sum(x.nbytes for x in (self.features, self.labels, self.bar_ts, self.known_at))

    def known_by(self, moment: dt.datetime) -> LabelledSession:
        """The rows whose features and outcome could be known at a moment."""
        known = self.known_at <= to_datetime64(moment)
        if known.all():
            return self
        return LabelledSession.of(
            self.features[known], self.labels[known], self.bar_ts[known], self.known_at[known]
        )


class Spool:
    """Feature rows in an unnamed temporary file: they take disk and page cache, not memory.

    The file goes with the process that made it, however that ends. It lies in TMPDIR.

    Args:
        width: number of features.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._file = tempfile.TemporaryFile(prefix="hedge-rows-")  # noqa: SIM115

    def add(self, features: npt.NDArray[np.float32]) -> None:
        """Appends rows, float32 [rows, features]."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(features, dtype=np.float32).tobytes())

    def read(self, first: int, last: int) -> npt.NDArray[np.float32]:
        """Some of the rows, float32 [rows, features]; costs the memory of these only."""
        found = np.empty((last - first, self._width), np.float32)
        self._file.seek(first * self._width * found.itemsize)
        self._file.readinto(found.data)
        return found

    def rows(self) -> npt.NDArray[np.float32]:
        """Every row added so far, float32 [rows, features], read only."""
        self._file.flush()
        if self._file.tell() == 0:
            return np.empty((0, self._width), np.float32)
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype=np.float32).reshape(-1, self._width)


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a `TrainingSet`, see there."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    base_margin: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class TrainingSet:
    """Rows for one fit, oldest session first.

    Attributes:
        names: of the features, in the order of the columns.
        features: float32 [rows, features], NaN = unknown.
        labels: float64 [rows], 1 up and 0 down.
        weights: float64 [rows]; one over the horizon, halved every half-life.
        recent: the rows of the last sessions, for the guards.
        sessions: labels of the sessions used.
        counts: rows of each session.
        data_hash: sha256 over names, values, labels and what the weights are made of.
        base_margin: float64 [rows], log-odds of the base rate of the row's symbol; None = that of
            all rows. Trees learn what lies above it.
        spool: where the features lie if not in memory.
    """

    names: Sequence[str]
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    recent: slice
    sessions: tuple[str, ...]
    counts: tuple[int, ...]
    data_hash: str
    base_margin: npt.NDArray[np.float64] | None = None
    spool: Spool | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def base_rates(self, rows: slice) -> float | npt.NDArray[np.float64]:
        """Base rate of each of the rows; one number where they have no base margin."""
        if self.base_margin is None:
            return self.base_rate
        return np.asarray(sigmoid(self.base_margin[rows]))

    def sample(self, most: int = 250_000) -> npt.NDArray[np.float32]:
        """All feature rows, or every second, third, ... so that there are at most so many."""
        step = -(-self.rows // most)
        if step < 2:
            return self.features
        if self.spool is None:
            return self.features[::step]
        blocks = self.blocks(step * (_ROWS_AT_ONCE // step))
        return np.concatenate([block.features[::step].copy() for block in blocks])

    def some(self, places: npt.NDArray[np.int64]) -> Block:
        """A few of the rows.

        Args:
            places: of the rows wanted, ascending.
        """
        if self.spool is None:
            features = self.features[places]
        else:
            features = np.concatenate(
                [self.spool.read(int(place), int(place) + 1) for place in places]
            )
        margin = None if self.base_margin is None else self.base_margin[places]
        return Block(features, self.labels[places], self.weights[places], margin)

    def blocks(self, rows: int = _ROWS_AT_ONCE) -> Iterator[Block]:
        """All rows in order, so many at once; of spooled features only one block is in memory."""
        for first in range(0, self.rows, rows):
            part = slice(first, min(first + rows, self.rows))
            features = self.spool.read(first, part.stop) if self.spool else self.features[part]
            margin = None if self.base_margin is None else self.base_margin[part]
            yield Block(features, self.labels[part], self.weights[part], margin)

    @property
    def base_rate(self) -> float:
        """Weighted share of ups, strictly between 0 and 1 when both classes occur."""
        return float(np.average(self.labels, weights=self.weights))


class LabelledSessions:
    """Reads labelled sessions and remembers them; closed sessions do not change.

    What was asked for longest ago is forgotten when it is more than `most` bytes. Trainings of
    several symbols ask at once.
    """

    def __init__(self, store: Store, horizon: int, most: int = _REMEMBERED_BYTES) -> None:
        self._store = store
        self._horizon = horizon
        self._most = most
        self._bytes = 0
        self._known: OrderedDict[tuple[str, str], LabelledSession] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, symbol: str, session: str) -> LabelledSession:
        """The labelled rows; without rows if the session has none."""
        key = (symbol, session)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = read_labelled(self._store, self._horizon, session, [symbol])[symbol]
        with self._lock:
            if key not in self._known:  # nobody has read it meanwhile
                self._known[key] = found
                self._bytes += found.nbytes
            while self._bytes > self._most and len(self._known) > 1:
                self._bytes -= self._known.popitem(last=False)[1].nbytes
        return found


def read_labelled(
    store: Store, horizon: int, session: str, symbols: Sequence[str]
) -> dict[str, LabelledSession]:
    """The labelled rows of a session by symbol; a symbol that has none has a session without rows.

    Args:
        store: where features and outcomes are.
        horizon: label horizon, bars.
        session: label.
        symbols: whose rows.
    """
    rows, features = read_features(store, [session], symbols)
    outcomes = store.read_arrow(
        OUTCOMES,
        [session],
        symbols=symbols,
        columns=("symbol", "bar_ts", "actual_direction", "available_at"),
        only={"horizon_bars": [horizon]},
    )
    if all(rows[name].equals(outcomes[name]) for name in ("symbol", "bar_ts")):
        place = np.arange(rows.num_rows)
    else:
        place = places_among(in_pandas(rows), in_pandas(outcomes))
    # the last one is that of rows without an outcome
    directions = np.append(outcomes["actual_direction"].to_numpy().astype(np.float64), np.nan)
    labels = directions[place]
    labelled = ~np.isnan(labels)
    features, labels, place = features[labelled], labels[labelled], place[labelled]
    times, owners = (rows[name].to_numpy()[labelled] for name in ("bar_ts", "symbol"))
    known_at = np.maximum(
        rows["available_at"].to_numpy()[labelled], outcomes["available_at"].to_numpy()[place]
    )
    found = {}
    for symbol in symbols:
        first, last = (int(np.searchsorted(owners, symbol, side=x)) for x in ("left", "right"))
        own = slice(first, last)
        found[symbol] = LabelledSession.of(features[own], labels[own], times[own], known_at[own])
    return found


def read_features(
    store: Store, sessions: Sequence[str], symbols: Sequence[str]
) -> tuple[pa.Table, npt.NDArray[np.float32]]:
    """Stored feature rows: symbol, bar_ts and available_at, and the values apart from them.

    Args:
        store: where they are.
        sessions: labels.
        symbols: whose rows.

    Returns:
        [rows], by session, symbol and time; and float32 [rows, features], NaN = unknown.
    """
    names = feature_names()
    rows = store.read_arrow(FEATURE_ROWS, sessions, symbols=symbols)
    values = np.empty((rows.num_rows, len(names)), np.float32)
    first = 0
    for batch in rows.select(names).to_batches():
        last = first + batch.num_rows
        values[first:last] = batch.to_tensor(null_to_nan=True).to_numpy()
        first = last
    return rows.select(["symbol", "bar_ts", "available_at"]), values


def assemble(
    reader: LabelledSessions,
    symbol: str,
    sessions: Sequence[str],
    plan: TrainingPlan,
    horizon: int,
    known_by: dt.datetime,
) -> TrainingSet:
    """The rows of whole sessions, weighted (`row_weights`), as they were known at `known_by`.

    Args:
        reader: where the rows come from.
        symbol: whose rows.
        sessions: ascending session labels; the caller has cut them at the cutoff.
        plan: half-life and number of recent sessions.
        horizon: label horizon, bars.
        known_by: the cutoff as a moment; what became available later does not enter.
    """
    parts = [reader.read(symbol, session).known_by(known_by) for session in sessions]
    counts = [len(part.labels) for part in parts]
    width = len(feature_names())
    features = np.concatenate(
        [np.empty((0, width), np.float32), *(part.features for part in parts)]
    )
    labels = np.concatenate([np.empty(0), *(part.labels for part in parts)])
    recent = slice(sum(counts[: -plan.least_sessions]), None)
    digests = [f"{session}:{part.digest}" for session, part in zip(sessions, parts, strict=True)]
    return TrainingSet(
        feature_names(),
        features,
        labels,
        row_weights(counts, plan, horizon),
        recent,
        tuple(sessions),
        tuple(counts),
        data_hash(digests, plan, horizon),
    )


def row_weights(counts: Sequence[int], plan: TrainingPlan, horizon: int) -> npt.NDArray[np.float64]:
    """Weight of every row, uniqueness x age, float64 [rows].

    Each label shares its minutes with the next `horizon` - 1, so a row counts 1 / horizon; and half
    as much for every `half_life_sessions` before the last session (Lopez de Prado 2018, chapter 4,
    with the average uniqueness of overlapping labels).

    Args:
        counts: rows of each session, oldest first.
        plan: with the half-life.
        horizon: label horizon, bars.
    """
    ages = np.arange(len(counts) - 1, -1, -1, dtype=np.float64)
    return np.repeat(0.5 ** (ages / plan.half_life_sessions) / horizon, counts)


def data_hash(digests: Sequence[str], plan: TrainingPlan, horizon: int) -> str:
    """sha256 over the names of the features, what the weights are made of, and the rows."""
    columns = ",".join(feature_names())
    text = f"{columns};{horizon};{plan.half_life_sessions!r};" + ";".join(digests)
    return hashlib.sha256(text.encode()).hexdigest()
