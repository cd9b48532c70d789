"""Signals as trades: what a broker would have paid, the worse where bars leave it open."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.trades import (
    RELIABILITY_EDGES,
    TRADE_COLUMNS,
    UNSCORABLE,
    reliability,
    report,
    score_trades,
)
from hedge_pipeline.market.calendar import Session
from hedge_pipeline.market.tables import EXITS
from hedge_pipeline_tests.learning.conftest import log_rows, session_on, times_of

HORIZON = 4
SESSION = session_on(4, bars=20)
NAN = float("nan")
Bar = tuple[float, float, float, float]
QUIET: Bar = (100, 100, 100, 100)


def quotes(
    path: Sequence[Bar | None], session: Session = SESSION, symbol: str = "SIMQ"
) -> pd.DataFrame:
    """Bars (open, high, low, close) from the session's first on; None = there is none."""
    values = np.array([(NAN,) * 4 if bar is None else bar for bar in path], dtype=np.float64)
    frame = pd.DataFrame(values, columns=["open", "high", "low", "close"])
    frame.insert(0, "bar_ts", times_of(session)[: len(path)])
    frame.insert(0, "symbol", symbol)
    return frame.dropna().reset_index(drop=True)


def signals(
    places: Sequence[int] = (0,), session: Session = SESSION, **columns: Any
) -> pd.DataFrame:
    given = {
        "level_type": "support",
        "level_source": "HP",
        "strength_score": 20.0,
        "confidence": 0.6,
        "signal_fired": True,
        **columns,
    }
    rows = log_rows(session, np.zeros(session.bars))
    return rows.iloc[list(places)].reset_index(drop=True).assign(**given)


def traded(path: Sequence[Bar | None], side: str = "support", cost: float = 0.0) -> dict[str, Any]:
    """The trade of a signal at the first bar; `path` are the bars after it."""
    path = [QUIET, *path, *[QUIET] * (19 - len(path))]
    (found,) = score_trades(
        signals(level_type=side), quotes(path), SESSION, horizon=HORIZON, cost_bps=cost
    ).to_dict("records")
    return {str(name): value for name, value in found.items()}


def mirrored(bar: Bar) -> Bar:
    opened, high, low, close = bar
    return 200 - opened, 200 - low, 200 - high, 200 - close


# --- pen and paper -----------------------------------------------------------------------------

PATHS: list[tuple[list[Bar], str, float]] = [
    ([QUIET] * 4, "time", 100.0),
    ([QUIET] * 3 + [(100, 100.5, 99.5, 100.2)], "time", 100.2),
    ([(100, 101.4, 99.1, 100)] * 4, "time", 100.0),
    ([(100, 101.5, 99.1, 100)], "target", 101.5),
    ([QUIET, QUIET, QUIET, (100, 102, 100, 100)], "target", 101.5),
    ([QUIET] * 4 + [(100, 102, 98, 100)], "time", 100.0),
    ([(100, 101, 99, 100.5)], "stop", 99.0),
    ([(100, 102, 98, 101)], "stop", 99.0),
    ([QUIET, (98.4, 99, 98, 98.9)], "stop", 98.4),
    ([QUIET, (99.5, 99.6, 98.4, 99)], "stop", 99.0),
    ([QUIET, (103, 104, 102, 103)], "target", 101.5),
    ([(100, 101.5, 100, 101), (98, 98, 98, 98)], "target", 101.5),
    ([(100, 100, 99, 100), (103, 103, 103, 103)], "stop", 99.0),
]


@pytest.mark.parametrize(("path", "reason", "price"), PATHS)
def test_a_long_trade_ends_at_target_stop_or_horizon(
    path: list[Bar], reason: str, price: float
) -> None:
    found = traded(path)
    assert (found["side"], found["exit_reason"]) == ("long", reason)
    assert found["entry_price"] == 100
    assert found["exit_price"] == pytest.approx(price)
    assert found["return_pct"] == pytest.approx(price - 100)
    assert found["win"] is (price > 100)


@pytest.mark.parametrize(("path", "reason", "price"), PATHS)
def test_a_short_trade_is_a_long_one_in_the_mirror(
    path: list[Bar], reason: str, price: float
) -> None:
    found = traded([mirrored(bar) for bar in path], "resistance")
    assert (found["side"], found["exit_reason"]) == ("short", reason)
    assert found["exit_price"] == pytest.approx(200 - price)
    assert found["return_pct"] == pytest.approx(price - 100)


def test_the_entry_is_the_open_of_the_next_bar() -> None:
    found = traded([(101, 101, 101, 101), *[(101, 101, 101, 102)] * 3])
    assert found["entry_price"] == 101
    assert found["exit_price"] == 102
    assert found["return_pct"] == pytest.approx(100 / 101)


def test_each_side_of_a_trade_costs() -> None:
    path: list[Bar] = [QUIET] * 3 + [(100, 101, 100, 101)]
    assert traded(path, cost=0)["return_pct"] == pytest.approx(1.0)
    assert traded(path, cost=5)["return_pct"] == pytest.approx(1 - 0.05 * (1 + 1.01))
    assert traded([QUIET] * 4, cost=1)["return_pct"] == pytest.approx(-0.02)
    assert traded([QUIET] * 4, cost=1)["win"] is False
    short = traded([mirrored(bar) for bar in path], "resistance", cost=5)
    assert short["return_pct"] == pytest.approx(1 - 0.05 * (1 + 0.99))


def test_target_and_stop_can_be_chosen() -> None:
    path = quotes([QUIET, (100, 100.4, 99.6, 100), *[QUIET] * 18])
    for target, stop, reason in ((0.004, 0.01, "target"), (0.02, 0.004, "stop")):
        (found,) = score_trades(
            signals(), path, SESSION, horizon=4, cost_bps=0, target=target, stop=stop
        )["exit_reason"]
        assert found == reason


# --- what cannot be scored ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ([None, QUIET, QUIET, QUIET], "no_next_bar"),
        ([QUIET, None, QUIET, QUIET], "gap"),
        ([QUIET, QUIET, QUIET, None], "gap"),
        ([QUIET, None, (100, 102, 100, 102)], "gap"),
    ],
)
def test_a_missing_bar_makes_a_trade_unscorable(path: list[Bar | None], reason: str) -> None:
    found = traded(path)
    assert (found["exit_reason"], found["reason"]) == ("unscorable", reason)
    assert np.isnan([found["entry_price"], found["exit_price"], found["return_pct"]]).all()
    assert pd.isna(found["win"])


@pytest.mark.parametrize("last", [(100, 102, 100, 102), (100, 100, 98, 98)])
def test_a_bar_missing_after_the_exit_does_not_matter(last: Bar) -> None:
    assert pd.isna(traded([QUIET, last, None, None])["reason"])


def test_a_trade_does_not_reach_over_the_close() -> None:
    rows = signals([14, 15, 16, 19])
    found = score_trades(rows, quotes([QUIET] * 20), SESSION, horizon=HORIZON, cost_bps=1)
    assert found["exit_reason"].tolist() == ["time", "time", "unscorable", "unscorable"]
    assert found["reason"].fillna("").tolist() == ["", "", "crosses_close", "crosses_close"]


def test_a_signal_of_another_session_is_refused() -> None:
    with pytest.raises(ValueError, match=f"no bar of {SESSION.label}"):
        score_trades(
            signals(session=session_on(5)), quotes([QUIET]), SESSION, horizon=4, cost_bps=1
        )


def test_without_bars_nothing_is_scorable_and_without_signals_nothing_is_traded() -> None:
    found = score_trades(signals([0, 3]), quotes([None]), SESSION, horizon=4, cost_bps=1)
    assert found["reason"].tolist() == ["no_next_bar"] * 2
    none = score_trades(signals([]), quotes([QUIET] * 20), SESSION, horizon=4, cost_bps=1)
    assert none.empty
    assert tuple(none.columns) == TRADE_COLUMNS


def test_a_row_says_what_was_traded() -> None:
    rows = signals([2], level_source="MHP", strength_score=31.0, confidence=0.5625)
    (found,) = score_trades(rows, quotes([QUIET] * 20), SESSION, horizon=4, cost_bps=1).to_dict(
        "records"
    )
    assert list(found) == list(TRADE_COLUMNS)
    assert (found["symbol"], found["session"]) == ("SIMQ", SESSION.label)
    assert found["bar_ts"] == rows["bar_ts"].iloc[0]
    assert (found["level_source"], found["strength_band"]) == ("MHP", "30-50")
    assert found["confidence"] == 0.5625


# --- any market --------------------------------------------------------------------------------


def market(seed: int, symbol: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Jumpy bars with holes, and signals of both sides."""
    rng = np.random.default_rng(seed)
    jumps = rng.normal(0, 0.004, (2, 20))
    close = 100 * np.exp(np.cumsum(jumps.sum(axis=0)))
    opened = close * np.exp(-jumps[1])
    high = np.maximum(opened, close) * (1 + rng.exponential(0.003, 20))
    low = np.minimum(opened, close) * (1 - rng.exponential(0.003, 20))
    path = list(zip(opened, high, low, close, strict=True))
    bars = quotes([None if rng.random() < 0.05 else bar for bar in path], symbol=symbol)
    side = rng.choice(["support", "resistance"], 20)
    return bars, signals(range(20), level_type=side, symbol=symbol)


def by_hand(
    at: int, long: bool, bars: dict[int, tuple[float, float, float, float]], cost: float
) -> tuple[str, float]:
    """Exit reason and net return of one trade, bar after bar."""
    if at + HORIZON >= 20:
        return "crosses_close", NAN
    if at + 1 not in bars:
        return "no_next_bar", NAN
    entry = bars[at + 1][0]
    stop, target = (entry * 0.99, entry * 1.015) if long else (entry * 1.01, entry * 0.985)
    for place in range(at + 1, at + HORIZON + 1):
        if place not in bars:
            return "gap", NAN
        opened, high, low, close = bars[place]
        reason, price = "", NAN
        if (low <= stop) if long else (high >= stop):
            reason, price = "stop", min(opened, stop) if long else max(opened, stop)
        elif (high >= target) if long else (low <= target):
            reason, price = "target", target
        elif place == at + HORIZON:
            reason, price = "time", close
        if reason:
            gain = price - entry if long else entry - price
            return reason, (gain - cost / 1e4 * (entry + price)) / entry * 100
    raise AssertionError


@given(seed=st.integers(0, 10**6), cost=st.sampled_from([0.0, 1.0, 20.0]))
def test_the_trades_are_those_of_going_through_the_bars_by_hand(seed: int, cost: float) -> None:
    markets = {"SIMQ": market(seed, "SIMQ"), "SIMN": market(seed + 1, "SIMN")}
    bars, rows = (pd.concat(parts) for parts in zip(*markets.values(), strict=True))
    rows = rows.sample(frac=1, random_state=seed)
    found = score_trades(rows, bars, SESSION, horizon=HORIZON, cost_bps=cost)
    place = {moment: at for at, moment in enumerate(times_of(SESSION))}
    known = {
        symbol: {
            place[row["bar_ts"]]: (row["open"], row["high"], row["low"], row["close"])
            for row in own.to_dict("records")
        }
        for symbol, (own, _) in markets.items()
    }
    trades = found.to_dict("records")
    for row, trade in zip(rows.to_dict("records"), trades, strict=True):
        long = row["level_type"] == "support"
        reason, gain = by_hand(place[row["bar_ts"]], long, known[row["symbol"]], cost)
        assert reason in (trade["reason"], trade["exit_reason"])
        np.testing.assert_allclose(trade["return_pct"], gain, atol=1e-9)
    scored = found[found["exit_reason"] != "unscorable"]
    assert (scored["win"] == (scored["return_pct"] > 0)).all()
    assert found["exit_reason"].isin(EXITS).all()
    assert found["reason"].dropna().isin(UNSCORABLE).all()


def test_the_jumpy_market_has_every_kind_of_exit() -> None:
    """Otherwise the property above would prove little."""
    seen: set[str] = set()
    for seed in range(6):
        bars, rows = market(seed, "SIMQ")
        found = score_trades(rows, bars, SESSION, horizon=HORIZON, cost_bps=1)
        seen |= {*found["exit_reason"], *found["reason"].dropna()}
    assert seen == {*EXITS, *UNSCORABLE}


def test_costs_only_ever_lower_a_return() -> None:
    bars, rows = market(3, "SIMQ")
    free, paid = (
        score_trades(rows, bars, SESSION, horizon=HORIZON, cost_bps=cost)["return_pct"].dropna()
        for cost in (0, 1)
    )
    assert ((free - paid) > 0.0198).all()
    assert ((free - paid) < 0.0203).all()


# --- reports -----------------------------------------------------------------------------------


def trades(returns: Sequence[float], per_session: int = 2, **columns: Any) -> pd.DataFrame:
    """Trades with these net returns in percent; NaN = unscorable."""
    gain = np.array(returns, dtype=np.float64)
    lost = np.isnan(gain)
    win = pd.array(gain > 0, dtype="boolean")
    win[lost] = pd.NA
    reason = ["gap" if unknown else None for unknown in lost]
    frame = pd.DataFrame(
        {
            "symbol": "SIMQ",
            "session": [f"2024-03-{4 + i // per_session:02d}" for i in range(len(gain))],
            "bar_ts": times_of(SESSION)[0],
            "side": "long",
            "level_source": "HP",
            "strength_band": "15-30",
            "confidence": 0.6,
            "entry_price": 100.0,
            "exit_price": 100 + gain,
            "exit_reason": np.where(lost, "unscorable", np.where(gain > 0, "target", "stop")),
            "reason": pd.array(reason, dtype="str"),
            "return_pct": gain,
            "win": win,
        }
    )
    return frame.assign(**columns)[list(TRADE_COLUMNS)]


def test_a_report_agrees_with_pen_and_paper() -> None:
    found = report(trades([1.5, -1.0, 0.5, 1.0, NAN, -0.5]))
    ends = ("lo", "hi", "profit_factor_lo", "profit_factor_hi")
    assert found["overall"] | dict.fromkeys(ends, 0) == {
        "signals": 6,
        "scored": 5,
        "unscorable": {"gap": 1},
        "exits": {"stop": 2, "target": 3},
        "win_rate": 0.6,
        "lo": 0,
        "hi": 0,
        "profit_factor": 2.0,
        "profit_factor_lo": 0,
        "profit_factor_hi": 0,
        "average_pct": 0.3,
    }
    assert (found["overall"]["lo"], found["overall"]["hi"]) == (0.0, 1.0)
    # three sessions: the last one lost all it did, and one draw in 27 has no loss at all
    assert found["overall"]["profit_factor_lo"] == 0.0
    assert found["overall"]["profit_factor_hi"] is None
    assert found["by_session"] == {
        "2024-03-04": {"signals": 2, "scored": 2, "false_positive_rate": 0.5},
        "2024-03-05": {"signals": 2, "scored": 2, "false_positive_rate": 0.0},
        "2024-03-06": {"signals": 2, "scored": 1, "false_positive_rate": 1.0},
    }


def test_a_report_is_split_by_kind_of_level_strength_and_confidence() -> None:
    found = report(
        trades(
            [1.0, -1.0, 1.0, 1.0],
            level_source=["HP", "HG", "HG", "HG"],
            strength_band=["15-30", "15-30", "30-50", "30-50"],
            confidence=np.array([0.55, 0.5999, 0.6, 1.0], np.float32),
        )
    )

    def split(title: str) -> dict[str, tuple[int, float]]:
        groups = found[title].items()
        return {name: (group["signals"], group["win_rate"]) for name, group in groups}

    assert split("by_level_source") == {"HG": (3, 2 / 3), "HP": (1, 1.0)}
    assert split("by_strength_band") == {"15-30": (2, 0.5), "30-50": (2, 1.0)}
    assert split("by_confidence") == {
        "0.55-0.60": (2, 0.5),
        "0.60-0.65": (1, 1.0),
        "0.70-1.00": (1, 1.0),
    }


FACTOR = ("profit_factor", "profit_factor_lo", "profit_factor_hi")


@pytest.mark.parametrize("repeats", [2, 40])
def test_the_interval_of_the_profit_factor_narrows_around_it_with_more_sessions(
    repeats: int,
) -> None:
    found = report(trades([1.5, -1.0, 0.5, -0.5] * repeats))["overall"]
    assert found["profit_factor"] == pytest.approx(4 / 3)
    assert found["profit_factor_lo"] <= 4 / 3 <= found["profit_factor_hi"]
    width = found["profit_factor_hi"] - found["profit_factor_lo"]
    assert (width < 0.25) is (repeats == 40)


@pytest.mark.parametrize(
    ("returns", "unknown"),
    [
        ([], {"win_rate", "lo", "hi", *FACTOR, "average_pct"}),
        ([NAN, NAN], {"win_rate", "lo", "hi", *FACTOR, "average_pct"}),
        ([1.0, -1.0], {"lo", "hi", "profit_factor_lo", "profit_factor_hi"}),
        ([1.0, 1.0, 1.0], set(FACTOR)),
    ],
)
def test_what_is_not_known_is_none_and_the_report_is_json(
    returns: list[float], unknown: set[str]
) -> None:
    found = report(trades(returns))
    assert {name for name, value in found["overall"].items() if value is None} == unknown
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_report_of_scored_signals_is_json_too() -> None:
    bars, rows = market(3, "SIMQ")
    found = report(score_trades(rows, bars, SESSION, horizon=HORIZON, cost_bps=1))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["overall"]["signals"] == 20


def test_the_interval_is_wider_when_the_trades_of_a_session_go_together() -> None:
    rng = np.random.default_rng(0)
    apart = np.where(rng.random(400) < 0.55, 1.0, -1.0)
    together = np.repeat(np.where(rng.random(20) < 0.55, 1.0, -1.0), 20)
    width = {}
    for name, returns in (("apart", apart), ("together", together)):
        overall = report(trades(returns.tolist(), per_session=20))["overall"]
        assert overall["lo"] < overall["win_rate"] < overall["hi"]
        width[name] = overall["hi"] - overall["lo"]
    assert width["apart"] == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.35)
    assert width["together"] > 3 * width["apart"]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        wins = rng.random((30, 5)) < np.clip(rng.normal(0.5, 0.15, (30, 1)), 0, 1)
        rows = trades(np.where(wins, 1.0, -1.0).ravel().tolist(), per_session=5)
        rows["session"] = np.repeat(np.arange(30), 5).astype(str)
        overall = report(rows, draws=400)["overall"]
        covered += overall["lo"] <= 0.5 <= overall["hi"]
    assert 0.88 <= covered / 100 <= 0.99


# --- reliability -------------------------------------------------------------------------------


def test_reliability_counts_hits_by_confidence() -> None:
    curve = reliability(
        [0.5, 0.54, 0.55, 0.6, 0.7, NAN, 0.52], [1, 0, 1, 1, 0, 1, NAN], (0.5, 0.55, 0.7)
    )
    assert curve == [
        {"from": 0.5, "to": 0.55, "n": 2, "confidence": pytest.approx(0.52), "frequency": 0.5},
        {
            "from": 0.55,
            "to": 0.7,
            "n": 3,
            "confidence": pytest.approx((0.55 + 0.6 + 0.7) / 3),
            "frequency": pytest.approx(2 / 3),
        },
    ]


def test_an_empty_bin_is_shown_as_unknown() -> None:
    curve = reliability([], [])
    assert len(curve) == len(RELIABILITY_EDGES) - 1
    assert {(entry["n"], entry["confidence"], entry["frequency"]) for entry in curve} == {
        (0, None, None)
    }
    assert json.loads(json.dumps(curve, allow_nan=False)) == curve


def test_a_calibrated_forecast_lies_on_the_diagonal_and_a_boastful_one_below_it() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.5, 0.62, 40_000)
    hit = (rng.random(40_000) < truth).astype(float)
    honest = [entry for entry in reliability(truth, hit) if entry["n"]]
    boastful = [entry for entry in reliability(truth + 0.08, hit) if entry["n"]]
    assert sum(entry["n"] for entry in honest) == sum(entry["n"] for entry in boastful) == 40_000
    for entry in honest:
        assert abs(entry["confidence"] - entry["frequency"]) < 4 * 0.5 / math.sqrt(entry["n"])
    assert all(entry["confidence"] - entry["frequency"] > 0.04 for entry in boastful)


@given(
    values=st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0, NAN])), max_size=50),
)
def test_every_labelled_prediction_is_in_exactly_one_bin(
    values: list[tuple[float, float]],
) -> None:
    said = [confidence for confidence, _ in values]
    hit = [happened for _, happened in values]
    curve = reliability(said, hit)
    assert sum(entry["n"] for entry in curve) == sum(not math.isnan(x) for x in hit)
    for entry in curve:
        if entry["n"]:
            assert entry["from"] - 1e-6 <= entry["confidence"] <= entry["to"] + 1e-6
