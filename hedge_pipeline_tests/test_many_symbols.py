"""Symbols with holes, late starters and one without any data: each is its own affair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline import stages
from hedge_pipeline.market.sources import SourceError
from hedge_pipeline.market.tables import FEATURE_ROWS, GAPS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.replay import replay
from hedge_pipeline.stages import Deployment
from hedge_pipeline_tests.replays import replay_in, sessions_of

SYMBOLS = ("FULL", "HOLES", "LATE")
LATE_FROM = 3
DAYS_OFF = (2, 6)  # of HOLES
SESSIONS = 9


@pytest.fixture(scope="module", params=["symbol", "pool"])
def replayed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    """FULL has every bar; HOLES lacks two days and every seventh bar; LATE begins on day four."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(3)
    market = replay_in(folder / "calendar")
    pieces = []
    for number, label in enumerate(sessions_of(market, SESSIONS)):
        times = pd.DatetimeIndex(market.calendar.session(label).bar_ts).tz_localize("UTC")
        for symbol in SYMBOLS:
            absent = (symbol == "LATE" and number < LATE_FROM) or (
                symbol == "HOLES" and number in DAYS_OFF
            )
            kept = (
                np.arange(len(times)) % 7 != 3 if symbol == "HOLES" else np.ones(len(times), bool)
            )
            if absent:
                continue
            price = 100 * np.exp(np.cumsum(5e-4 * rng.standard_normal(len(times)))).round(4)
            bars = pd.DataFrame({"symbol": symbol, "ts": times, "volume": 1000.0})
            bars = bars.assign(**dict.fromkeys(("open", "high", "low", "close"), price))
            pieces.append(bars[kept])
    pd.concat(pieces).to_parquet(folder / "bars.parquet")
    made = replay_in(
        folder / "out",
        SYMBOLS,
        HEDGE_SOURCE="file",
        HEDGE_SOURCE_PATH=str(folder / "bars.parquet"),
        HEDGE_MODEL_SCOPE=request.param,
    )
    replay(made, sessions_of(made, SESSIONS))
    return made


def count(deployment: Deployment, table: object, symbol: str) -> int:
    return len(deployment.store.read(table, symbols=[symbol]))  # type: ignore[arg-type]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_bar_has_features_a_prediction_and_an_outcome(
    replayed: Deployment, symbol: str
) -> None:
    bars = count(replayed, RAW_QUOTES, symbol)
    assert bars > 5 * 300
    assert count(replayed, FEATURE_ROWS, symbol) == bars
    assert count(replayed, OUTCOMES, symbol) == bars
    log = replayed.store.read(PREDICTION_LOG, symbols=[symbol])
    assert (log["role"] == "served").sum() == bars


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_bars_and_gaps_are_the_whole_calendar(replayed: Deployment, symbol: str) -> None:
    expected = sum(replayed.calendar.session(x).bars for x in sessions_of(replayed, SESSIONS))
    assert count(replayed, RAW_QUOTES, symbol) + count(replayed, GAPS, symbol) == expected


def test_a_full_symbol_is_not_touched_by_the_others(replayed: Deployment, tmp_path: Path) -> None:
    (path,) = Path(replayed.store.url).parent.glob("bars.parquet")
    alone = replay_in(tmp_path, ("FULL",), HEDGE_SOURCE="file", HEDGE_SOURCE_PATH=str(path))
    replay(alone, sessions_of(alone, SESSIONS))
    # a pooled model is meant to learn from the others
    for table in (
        RAW_QUOTES,
        FEATURE_ROWS,
        OUTCOMES,
        *(() if replayed.pooled else (PREDICTION_LOG,)),
    ):
        pd.testing.assert_frame_equal(
            replayed.store.read(table, symbols=["FULL"]).reset_index(drop=True),
            alone.store.read(table).reset_index(drop=True),
        )


def test_a_late_starter_predicts_as_soon_as_there_is_a_model(replayed: Deployment) -> None:
    """Its own model needs five sessions of its own; the pool's is there when it comes."""
    log = replayed.store.read(PREDICTION_LOG, symbols=["LATE"])
    made = log[log["prediction"].notna()]
    first = str(made["bar_ts"].min().date())
    labels = sessions_of(replayed, SESSIONS)
    assert first == (labels[5] if replayed.pooled else labels[LATE_FROM + 5])


def test_a_session_without_bars_is_never_settled_and_never_learned(replayed: Deployment) -> None:
    labels = sessions_of(replayed, SESSIONS)
    settled = stages.settled_sessions(replayed, "HOLES")
    assert settled == tuple(x for i, x in enumerate(labels) if i not in DAYS_OFF)
    newest = replayed.shelf.newest("HOLES")
    assert newest is not None
    if replayed.pooled:
        window = stages.pool_window(replayed)
        assert [len(window[x]) for x in labels] == [2, 2, 1, 3, 3, 3, 2, 3, 3]
    else:
        assert newest.sessions == SESSIONS - len(DAYS_OFF)


def test_a_symbol_nobody_knows_stops_a_replay_before_it_begins(tmp_path: Path) -> None:
    made = replay_in(tmp_path, ("SIMQ", "NOBODY"))
    from hedge_pipeline.replay import check_symbols

    with pytest.raises(SourceError, match="NOBODY"):
        check_symbols(made, sessions_of(made, 1)[0])
