"""Training rows of many symbols, for one model of all of them, or of a window beyond memory.

Features are relative, so a row of one symbol may teach about another. Trees learn what lies above
the base rate of the row's own symbol, so that a symbol that rises more often than others teaches no
feature that tells symbols apart. Whole sessions only, oldest first, symbols in order of name: as in
`dataset.py`, cutting between sessions is the purge, for all symbols at once.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hedge_pipeline.learning.dataset import (
    LabelledSession,
    Spool,
    TrainingSet,
    data_hash,
    read_labelled,
    row_weights,
)
from hedge_pipeline.market.tables import feature_names
from hedge_pipeline.probability import logit

if TYPE_CHECKING:
    from hedge_pipeline.learning.training import TrainingPlan
    from hedge_pipeline.store import Store

# no symbol may contain an underscore, so it is nobody's name
POOL = "_pool"
SPOOL_FROM = 500_000
# effective rows by which the base rate of a symbol is drawn towards that of all
_PRIOR_ROWS = 20.0
_REMEMBERED_BYTES = 256 << 20

Wanted = Mapping[str, Sequence[str]]


class PooledSessions:
    """Reads labelled sessions of many symbols, every file once, and remembers the last ones."""

    def __init__(self, store: Store, horizon: int) -> None:
        self._store = store
        self._horizon = horizon
        self._known: OrderedDict[str, dict[str, LabelledSession]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def read(
        self, session: str, symbols: Sequence[str], *, remember: bool = True
    ) -> dict[str, LabelledSession]:
        """The labelled rows by symbol; a symbol without rows has a session without rows."""
        with self._lock:
            known = self._known.get(session, {})
            if not set(symbols) <= set(known):
                self._forget(session)
                every = sorted(set(symbols) | set(known))
                known = read_labelled(self._store, self._horizon, session, every)
                if not remember:
                    return known
                self._known[session] = known
                self._bytes += _bytes(known)
                while self._bytes > _REMEMBERED_BYTES:
                    self._forget(next(iter(self._known)))
            return {symbol: known[symbol] for symbol in symbols}

    def _forget(self, session: str) -> None:
        self._bytes -= _bytes(self._known.pop(session, {}))


def assemble_pool(
    reader: PooledSessions,
    wanted: Wanted,
    plan: TrainingPlan,
    horizon: int,
    known_by: dt.datetime,
    *,
    spooled: bool,
) -> TrainingSet:
    """The rows of whole sessions of the symbols, weighted by `row_weights`.

    Rows of one symbol alone have the hash and the values `dataset.assemble` gives them, and no base
    margin.

    Args:
        reader: where the rows come from.
        wanted: symbols by session, sessions ascending.
        plan: half-life and number of recent sessions.
        horizon: label horizon, bars.
        known_by: the cutoff as a moment; what became available later does not enter.
        spooled: keep the features on disk.
    """
    members = sorted({symbol for symbols in wanted.values() for symbol in symbols})
    spool = Spool(len(feature_names())) if spooled else None
    features = [np.empty((0, len(feature_names())), np.float32)]
    labels, owners, digests, counts = [np.empty(0)], [np.empty(0, np.int64)], [], []
    for session, symbols in wanted.items():
        count = 0
        parts = reader.read(session, symbols, remember=not spooled)
        for symbol in sorted(symbols):
            part = parts[symbol].known_by(known_by)
            if spool is None:
                features.append(part.features)
            else:
                spool.add(part.features)
            labels.append(part.labels)
            owners.append(np.full(len(part.labels), members.index(symbol)))
            name = session if len(members) == 1 else f"{session}:{symbol}"
            digests.append(f"{name}:{part.digest}")
            count += len(part.labels)
        counts.append(count)
    weights = row_weights(counts, plan, horizon)
    ups = np.concatenate(labels)
    return TrainingSet(
        feature_names(),
        np.concatenate(features) if spool is None else spool.rows(),
        ups,
        weights,
        slice(sum(counts[: -plan.least_sessions]), None),
        tuple(wanted),
        tuple(counts),
        data_hash(digests, plan, horizon),
        base_margin=None
        if len(members) < 2
        else _base_margins(ups, weights, np.concatenate(owners), len(members)),
        spool=spool,
    )


def _base_margins(
    labels: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    owners: npt.NDArray[np.int64],
    members: int,
) -> npt.NDArray[np.float64] | None:
    """Log-odds of the weighted share of ups of each row's symbol, drawn towards that of all."""
    if len(labels) == 0 or len(np.unique(labels)) < 2:
        return None
    base = np.average(labels, weights=weights)
    ups = np.bincount(owners, weights * labels, members) + _PRIOR_ROWS * base
    rate = ups / (np.bincount(owners, weights, members) + _PRIOR_ROWS)
    return np.asarray(logit(rate)[owners], dtype=np.float64)


def _bytes(parts: Mapping[str, LabelledSession]) -> int:
    return sum(part.features.nbytes + part.labels.nbytes for part in parts.values())
