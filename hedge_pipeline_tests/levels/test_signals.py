"""Signals: every rule can hold and can fail, the first that fails is named, and order is time."""

from __future__ import annotations

import datetime as dt
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.confidence import Seen, confident
from hedge_pipeline.levels.signals import (
    NO_CONFIDENCE,
    NO_LEVEL,
    NO_STRENGTH,
    ONLY_SUPPORT,
    SignalRules,
    decide_signals,
)
from hedge_pipeline.levels.strength import LEVELS, measure

OPENS = dt.datetime(2024, 3, 4, 14, 30, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
RULES = SignalRules()
BOTH = SignalRules(sides="both")
NAN = float("nan")


def bars(number: int = 1, **columns: Any) -> pd.DataFrame:
    """Bars that are signals, a minute apart; `columns` replace what is good about them."""
    frame = pd.DataFrame(
        {
            "symbol": "SIMQ",
            "bar_ts": pd.date_range(OPENS, periods=number, freq="min").as_unit("us"),
            "prediction": pd.array([1] * number, dtype="Int8"),
            "prob_up": 0.6,
            "confidence": 0.6,
            "strength_score": 20.0,
            "level_type": "support",
            "bars_left": 100,
            "reason": "",
        }
    )
    given = {
        name: pd.array(value if isinstance(value, list) else [value] * number, dtype="Int8")
        if name == "prediction"
        else value
        for name, value in columns.items()
    }
    return frame.assign(**given)


def decided(
    rows: pd.DataFrame, rules: SignalRules = RULES, last: dt.datetime | None = None
) -> list[tuple[bool, str]]:
    fired, reason = decide_signals(rows, rules, {} if last is None else {"SIMQ": last})
    return list(zip(fired.tolist(), reason.tolist(), strict=True))


# --- the rules ---------------------------------------------------------------------------------


def test_a_signal_fires_when_every_rule_holds() -> None:
    assert decided(bars()) == [(True, "long: every rule holds")]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"prediction": None, "reason": "no model was accepted yet"}, "no model was accepted yet"),
        ({"level_type": "none"}, NO_LEVEL),
        ({"level_type": "resistance"}, ONLY_SUPPORT),
        ({"strength_score": NAN}, NO_STRENGTH),
        ({"strength_score": 12.34}, "strength 12.3 < 15"),
        ({"strength_score": 14.999}, "strength 14.9 < 15"),
        ({"strength_score": 30.001}, "strength 30.1 > 30"),
        ({"confidence": NAN}, NO_CONFIDENCE),
        ({"confidence": 0.512}, "confidence 0.512 < 0.55"),
        ({"confidence": 0.54999}, "confidence 0.549 < 0.55"),
        ({"prediction": 0}, "prediction down at support"),
        ({"bars_left": 9}, "9 bars left, horizon 10"),
    ],
)
def test_a_rule_that_fails_is_named_with_its_numbers(columns: dict[str, Any], reason: str) -> None:
    assert decided(bars(**columns)) == [(False, reason)]


@pytest.mark.parametrize(
    "columns",
    [
        {"strength_score": 15.0},
        {"strength_score": 30.0},
        {"confidence": 0.55},
        {"confidence": np.array([0.55], np.float32)},
        {"bars_left": 10},
    ],
)
def test_every_bound_belongs_to_what_is_allowed(columns: dict[str, Any]) -> None:
    assert decided(bars(**columns))[0][0]


def test_values_are_compared_as_the_log_stores_them() -> None:
    rows = bars(5, confidence=0.55 + np.arange(-2, 3) * 1e-9, strength_score=15 - 1e-9)
    stored = rows.astype({"confidence": "float32", "strength_score": "float32"})
    rules = replace(RULES, cooldown=0)
    assert decided(rows, rules) == decided(stored, rules)
    assert all(fired for fired, _ in decided(rows, rules))


@pytest.mark.parametrize(
    ("prediction", "sides", "expected"),
    [
        (0, "both", (True, "short: every rule holds")),
        (1, "both", (False, "prediction up at resistance")),
        (0, "support", (False, ONLY_SUPPORT)),
    ],
)
def test_resistance_is_traded_short_when_both_sides_are(
    prediction: int, sides: Any, expected: tuple[bool, str]
) -> None:
    rows = bars(prediction=prediction, level_type="resistance")
    assert decided(rows, replace(RULES, sides=sides)) == [expected]


def test_the_first_rule_that_fails_is_the_one_that_is_named() -> None:
    faults: list[tuple[dict[str, Any], str]] = [
        ({"prediction": None, "reason": "late"}, "late"),
        ({"level_type": "none"}, NO_LEVEL),
        ({"strength_score": 3.0}, "strength 3.0 < 15"),
        ({"confidence": 0.5}, "confidence 0.500 < 0.55"),
        ({"prediction": 0}, "prediction down at support"),
        ({"bars_left": 3}, "3 bars left, horizon 10"),
    ]
    for first in range(len(faults)):
        columns: dict[str, Any] = {}
        for fault, _ in reversed(faults[first:]):
            columns |= fault
        found = decided(bars(**columns), RULES, OPENS)
        assert found == [(False, faults[first][1])]
    assert decided(bars(), RULES, OPENS) == [(False, "0 s after a signal, cooldown 300 s")]


# --- the cooldown ------------------------------------------------------------------------------


def test_after_a_signal_there_is_none_until_the_cooldown_is_over() -> None:
    found = decided(bars(12))
    assert [i for i, (fired, _) in enumerate(found) if fired] == [0, 5, 10]
    assert found[4][1] == "240 s after a signal, cooldown 300 s"


@pytest.mark.parametrize(("minutes", "fires"), [(1, False), (4, False), (5, True), (600, True)])
def test_the_newest_signal_of_the_log_counts_too(minutes: int, fires: bool) -> None:
    assert decided(bars(), RULES, OPENS - minutes * MINUTE)[0][0] is fires


def test_a_refused_bar_does_not_prolong_the_cooldown() -> None:
    rows = bars(7, confidence=[0.6, 0.5, 0.6, 0.5, 0.5, 0.5, 0.6])
    assert [fired for fired, _ in decided(rows)] == [True] + [False] * 5 + [True]


def test_without_a_cooldown_every_bar_may_be_a_signal() -> None:
    assert all(fired for fired, _ in decided(bars(5), replace(RULES, cooldown=0), OPENS))


def test_bars_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="time order"):
        decide_signals(bars(3)[::-1], RULES, {})


def test_no_bars_are_no_signals() -> None:
    assert decided(bars(0)) == []


def any_bars(seed: int, number: int = 80) -> pd.DataFrame:
    """Bars of which each rule refuses some, with minutes missing."""
    rng = np.random.default_rng(seed)
    said = [None if x < 0 else x for x in rng.choice([1, 1, 1, 0, -1], number).tolist()]
    return bars(
        number,
        bar_ts=pd.Series(
            pd.Timestamp(OPENS) + pd.to_timedelta(np.cumsum(rng.integers(1, 4, number)), unit="min")
        ).dt.as_unit("us"),
        prediction=said,
        confidence=rng.choice([0.5, 0.54, 0.6, 0.7], number),
        strength_score=rng.choice([NAN, 10.0, 20.0, 25.0, 29.0, 40.0], number),
        level_type=rng.choice(["support", "support", "resistance", "none"], number),
        bars_left=np.arange(number)[::-1],
        reason="no model was accepted yet",
    )


rule_sets = st.builds(
    SignalRules, sides=st.sampled_from(["support", "both"]), cooldown=st.sampled_from([0, 120, 900])
)


@given(seed=st.integers(0, 10**6), rules=rule_sets)
def test_bar_by_bar_is_the_same_as_at_once(seed: int, rules: SignalRules) -> None:
    rows = any_bars(seed)
    at_once = decided(rows, rules)
    last: dt.datetime | None = None
    for place in range(len(rows)):
        row = rows.iloc[[place]]
        (found,) = decided(row, rules, last)
        assert found == at_once[place]
        if found[0]:
            last = row["bar_ts"].iloc[0].to_pydatetime()
    assert last is not None


@given(seed=st.integers(0, 10**6), rules=rule_sets)
def test_every_signal_fulfils_every_rule_and_nothing_else_is_one(
    seed: int, rules: SignalRules
) -> None:
    rows = any_bars(seed).assign(fired=[fired for fired, _ in decided(any_bars(seed), rules)])
    made = rows[rows["fired"]]
    up = made["level_type"] == "support"
    assert (made["prediction"] == up.astype(int)).all()
    assert up.all() or rules.sides == "both"
    assert made["strength_score"].between(15, 30).all()
    assert (made["confidence"] >= 0.55).all()
    assert (made["bars_left"] >= 10).all()
    assert (made["bar_ts"].diff().dropna() >= pd.Timedelta(seconds=rules.cooldown)).all()
    free = replace(rules, cooldown=0)
    would = rows[[fired for fired, _ in decided(rows, free)]]
    for moment in would.loc[~would["fired"], "bar_ts"]:
        earlier = made.loc[made["bar_ts"] < moment, "bar_ts"]
        assert moment - earlier.max() < pd.Timedelta(seconds=rules.cooldown)


# --- reachability ------------------------------------------------------------------------------

NAMES = [name for name, _, _ in LEVELS]


def realistic(exposure: bool) -> pd.DataFrame:
    """A day's worth of what levels, exposure ranks and probabilities usually are, all combined."""
    away = (NAN, 0.0005, 0.002, 0.004, 0.02)
    rank_values = (0.1, 0.5, 0.95) if exposure else (NAN,)
    grid = list(
        itertools.product(
            rank_values, rank_values, away, away, away, away, (0.42, 0.5, 0.54, 0.56, 0.6)
        )
    )
    gex, vanna, hp, mhp, hg, above, prob_up = np.array(grid).T
    close = np.full(len(grid), 600.0)
    levels = {
        "gex_rank": gex,
        "vanna_rank": vanna,
        "hp_support": close * (1 - hp),
        "mhp_support": close * (1 - mhp),
        "hg_below": close * (1 - hg),
        "hp_resistance": close * (1 + above),
        "mhp_resistance": np.full(len(grid), NAN),
        "hg_above": np.full(len(grid), NAN),
    }
    assert sorted(levels) == sorted([*NAMES, "gex_rank", "vanna_rank"])
    strength = measure(close, levels)
    nothing = Seen(np.zeros(len(grid)), np.zeros(len(grid)), 0.5)
    return pd.DataFrame(
        {
            "symbol": "SIMQ",
            "bar_ts": pd.date_range(OPENS, periods=len(grid), freq="min").as_unit("us"),
            "prediction": pd.array((prob_up > 0.5).astype(int), dtype="Int8"),
            "prob_up": prob_up,
            "confidence": confident(prob_up, nothing).value,
            "strength_score": strength.score,
            "level_type": strength.level_type,
            "bars_left": np.arange(len(grid)) % 390,
            "reason": "",
        }
    )


def rule_of(reason: str) -> str:
    """What a reason is about, without its numbers."""
    named = ("strength", "confidence", "prediction", "bars left", "cooldown", "rule holds")
    return next((name for name in named if name in reason), reason)


@pytest.mark.parametrize("exposure", [True, False])
@pytest.mark.parametrize("sides", ["support", "both"])
def test_with_the_defaults_every_rule_lets_bars_pass_and_refuses_some(
    exposure: bool, sides: Any
) -> None:
    rows = realistic(exposure)
    score = rows.loc[rows["level_type"] != "none", "strength_score"]
    assert min((score < 15).mean(), (score > 30).mean(), score.between(15, 30).mean()) > 0.03
    counts = Counter(rule_of(reason) for _, reason in decided(rows, replace(RULES, sides=sides)))
    side = {ONLY_SUPPORT} if sides == "support" else set()
    refusing = {NO_LEVEL, "strength", "confidence", "prediction", "bars left", "cooldown"} | side
    assert set(counts) == {*refusing, "rule holds"}
    assert min(counts.values()) >= 5


@pytest.mark.parametrize(("side", "level_type"), [("long", "support"), ("short", "resistance")])
def test_signals_fire_at_either_side_when_gamma_and_vanna_are_known(
    side: str, level_type: str
) -> None:
    rows = realistic(exposure=True)
    fired, reason = decide_signals(rows, replace(BOTH, cooldown=0), {})
    here = fired & (rows["level_type"] == level_type).to_numpy()
    assert here.sum() > 10
    assert set(reason[here]) == {f"{side}: every rule holds"}


def test_the_highest_gamma_and_vanna_alone_are_too_strong_and_usual_ones_are_not() -> None:
    def score(rank: float) -> float:
        levels = {name: np.array([NAN]) for name in NAMES} | {"hp_support": np.array([99.9])}
        ranks = {"gex_rank": np.array([rank]), "vanna_rank": np.array([rank])}
        return float(measure(np.array([100.0]), levels | ranks).score[0])

    assert score(1.0) > RULES.max_strength
    assert RULES.min_strength < score(0.5) < RULES.max_strength
    assert score(0.1) < RULES.min_strength
