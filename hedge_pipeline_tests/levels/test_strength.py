"""The strength of the levels around a price, with pen and paper and for any market."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedge_pipeline.levels.strength import (
    BANDS,
    LEVELS,
    PARTS,
    Strength,
    measure,
    proximity,
    ranks,
    strength_band,
)

NAN = float("nan")
NAMES = [name for name, _, _ in LEVELS]


def one(close: float = 100.0, gex: float = NAN, vanna: float = NAN, **levels: float) -> Strength:
    """Strength at a single bar; what is not named is unknown."""
    columns = {name: [levels.pop(name, NAN)] for name in NAMES}
    assert not levels
    return measure(np.array([close]), {**columns, "gex_rank": [gex], "vanna_rank": [vanna]})


def nearest(found: Strength) -> tuple[Any, Any, Any]:
    return found.level_type[0], found.level_source[0], found.level_price[0]


# --- proximity ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (0.0, 1.0),
        (0.001, 0.8),
        (0.0025, 0.5),
        (0.005, 0.0),
        (0.02, 0.0),
        (-0.0002, 1.0),
        (-0.0005, 1.0),
        (-0.000501, 0.0),
        (-0.1, 0.0),
        (NAN, NAN),
    ],
)
def test_proximity_falls_to_zero_within_half_a_percent(distance: float, expected: float) -> None:
    np.testing.assert_allclose(proximity(np.array([distance])), [expected], atol=1e-12)


# --- the score ---------------------------------------------------------------------------------


def test_the_score_is_the_sum_of_its_parts_by_pen_and_paper() -> None:
    found = one(
        gex=0.4,
        vanna=0.6,
        hp_support=99.9,
        hp_resistance=101.0,
        mhp_support=99.8,
        mhp_resistance=100.1,
        hg_below=99.75,
        hg_above=107.0,
    )
    assert found.gex[0] == pytest.approx(8)
    assert found.vanna[0] == pytest.approx(9)
    assert found.hp[0] == pytest.approx(10 * 0.8)
    assert found.mhp[0] == pytest.approx(20 * 0.8)
    assert found.hg[0] == pytest.approx(25 * 0.5)
    assert found.overlap[0] == 10
    assert found.score[0] == pytest.approx(8 + 9 + 8 + 16 + 12.5 + 10)
    assert found.missing[0] == ""
    assert nearest(found) == ("support", "HP", 99.9)


def test_a_part_that_is_not_known_counts_nothing_and_is_named() -> None:
    found = one(vanna=1.0, mhp_support=100.0)
    assert found.score[0] == 15 + 20
    assert found.missing[0] == "gex,hp,hg"
    assert np.isnan([found.gex[0], found.hp[0], found.hg[0]]).all()


def test_a_level_out_of_reach_is_known_and_gives_no_points() -> None:
    found = one(hp_support=90.0, mhp_resistance=111.0, hg_below=99.0)
    assert (found.hp[0], found.mhp[0], found.hg[0], found.score[0]) == (0, 0, 0, 0)
    assert found.missing[0] == "gex,vanna"
    assert nearest(found)[:2] == ("none", "none")
    assert np.isnan(found.level_price[0])


@pytest.mark.parametrize(("close", "levels"), [(100.0, {}), (NAN, {"hp_support": 100.0})])
def test_without_any_level_or_price_the_score_is_unknown(
    close: float, levels: dict[str, float]
) -> None:
    found = one(close, gex=0.9, vanna=0.9, **levels)
    assert np.isnan(found.score[0])
    assert np.isnan(found.overlap[0])
    assert found.missing[0] == "hp,mhp,hg"
    assert nearest(found)[:2] == ("none", "none")


@pytest.mark.parametrize("support", [99.9, NAN, 90.0])
def test_of_support_and_resistance_of_one_kind_the_nearer_counts(support: float) -> None:
    found = one(hp_support=support, hp_resistance=100.25)
    assert found.hp[0] == pytest.approx(8 if support == 99.9 else 5)


def test_a_broken_level_gives_nothing_and_a_touched_one_everything() -> None:
    assert one(hg_below=100.05).hg[0] == 25
    assert one(hg_above=99.95).hg[0] == 25
    assert one(hg_below=100.06).hg[0] == 0
    assert one(hg_above=99.94).hg[0] == 0


# --- overlap -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "points"),
    [
        ({"hp_support": 99.9}, 0),
        ({"hp_support": 99.9, "mhp_support": 99.7}, 5),
        ({"hp_support": 99.9, "mhp_support": 99.69}, 0),
        ({"hp_support": 99.9, "mhp_resistance": 100.1}, 5),
        ({"hp_support": 99.9, "mhp_support": 99.9, "hg_below": 99.9}, 10),
        ({"hp_support": 99.9, "mhp_support": 99.9, "hg_below": 99.9, "hg_above": 100.1}, 10),
        ({"hp_support": 99.0, "mhp_support": 99.0, "hg_below": 99.0}, 0),
    ],
)
def test_other_levels_within_a_fifth_of_a_percent_of_the_nearest_overlap(
    levels: dict[str, float], points: float
) -> None:
    assert one(**levels).overlap[0] == points


# --- the nearest level -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ({"hp_support": 99.6, "hg_above": 100.3}, ("resistance", "HG", 100.3)),
        ({"hp_support": 99.5}, ("support", "HP", 99.5)),
        ({"hp_support": 99.49}, ("none", "none", NAN)),
        ({"mhp_resistance": 100.5}, ("resistance", "MHP", 100.5)),
        ({"mhp_resistance": 100.51}, ("none", "none", NAN)),
        ({"hp_support": 100.05}, ("support", "HP", 100.05)),
        ({"hp_support": 100.06, "hg_below": 99.6}, ("support", "HG", 99.6)),
        ({"hg_below": 99.8, "mhp_support": 99.8}, ("support", "MHP", 99.8)),
        ({"mhp_support": 99.7, "hp_resistance": 100.3}, ("resistance", "HP", 100.3)),
        ({"hp_support": 99.7, "hp_resistance": 100.3}, ("support", "HP", 99.7)),
        ({"hg_above": 100.2, "hg_below": 99.8}, ("support", "HG", 99.8)),
    ],
)
def test_the_nearest_level_names_side_and_kind(
    levels: dict[str, float], expected: tuple[str, str, float]
) -> None:
    found = nearest(one(**levels))
    assert found[:2] == expected[:2]
    np.testing.assert_equal(found[2], expected[2])


# --- any market --------------------------------------------------------------------------------


def table(rows: int, seed: int, unknown: float = 0.3) -> tuple[Any, pd.DataFrame]:
    """Closes and levels near them, some unknown."""
    rng = np.random.default_rng(seed)
    close = rng.uniform(5, 900, rows)
    frame = pd.DataFrame({name: close * (1 + rng.normal(0, 0.003, rows)) for name in NAMES})
    frame["gex_rank"], frame["vanna_rank"] = rng.random(rows), rng.random(rows)
    return close, frame.mask(rng.random(frame.shape) < unknown)


def columns(found: Strength) -> pd.DataFrame:
    return pd.DataFrame(vars(found))


@given(seed=st.integers(0, 10**6), unknown=st.sampled_from([0.0, 0.3, 0.9]))
def test_the_score_keeps_its_promises(seed: int, unknown: float) -> None:
    close, levels = table(200, seed, unknown)
    found = measure(close, levels)
    none_known = levels[NAMES].isna().all(axis=1).to_numpy()
    np.testing.assert_array_equal(np.isnan(found.score), none_known)
    score = found.score[~none_known]
    assert ((score >= 0) & (score <= 100)).all()
    total = columns(found)[[*PARTS, "overlap"]].fillna(0).sum(axis=1).to_numpy()[~none_known]
    np.testing.assert_allclose(score, total, rtol=1e-6)
    for i, name in enumerate(PARTS):
        lacks = np.array([name in text.split(",") for text in found.missing])
        np.testing.assert_array_equal(lacks, np.isnan(columns(found)[name]), err_msg=str(i))
    none = found.level_type == "none"
    np.testing.assert_array_equal(none, found.level_source == "none")
    np.testing.assert_array_equal(none, np.isnan(found.level_price))
    away = np.abs(found.level_price - close)[~none] / close[~none]
    assert (away <= 0.005 + 1e-9).all()
    beyond = np.where(found.level_type == "support", found.level_price - close, 0)
    beyond = np.where(found.level_type == "resistance", close - found.level_price, beyond)
    assert (beyond / close <= 0.0005 + 1e-9).all()


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 30))
def test_measuring_in_two_steps_equals_measuring_at_once(seed: int, cut: int) -> None:
    close, levels = table(30, seed)
    steps = [measure(close[part], levels[part]) for part in (slice(cut), slice(cut, None))]
    pd.testing.assert_frame_equal(
        pd.concat([columns(step) for step in steps if len(step.score)], ignore_index=True),
        columns(measure(close, levels)),
        check_exact=True,
    )


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.01, 0.5, 1000.0]))
def test_the_unit_of_the_price_does_not_matter(seed: int, scale: float) -> None:
    close, levels = table(50, seed)
    scaled = levels.assign(**{name: levels[name] * scale for name in NAMES})
    here, there = measure(close, levels), measure(close * scale, scaled)
    np.testing.assert_allclose(there.score, here.score, rtol=1e-5)
    np.testing.assert_array_equal(there.level_source, here.level_source)


@given(seed=st.integers(0, 10**6))
def test_the_mirrored_market_has_the_same_strength_on_the_other_side(seed: int) -> None:
    close, levels = table(100, seed)
    swap = dict(zip(NAMES, [NAMES[i ^ 1] for i in range(6)], strict=True))
    mirrored = levels.rename(columns=swap)
    mirrored[NAMES] = 2 * close[:, None] - mirrored[NAMES]
    here, there = measure(close, levels), measure(close, mirrored)
    np.testing.assert_allclose(there.score, here.score, atol=1e-4)
    other = {"support": "resistance", "resistance": "support", "none": "none"}
    np.testing.assert_array_equal(there.level_type, [other[side] for side in here.level_type])


# --- bands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "band"),
    [
        (0, "0-15"),
        (14.99, "0-15"),
        (15, "15-30"),
        (29.99, "15-30"),
        (30, "30-50"),
        (50, "50-100"),
        (100, "50-100"),
        (NAN, "none"),
        (14.9999999999, "15-30"),
    ],
)
def test_a_score_lies_in_one_band_as_it_is_stored(score: float, band: str) -> None:
    assert list(strength_band([score])) == [band]
    assert list(strength_band(np.array([score], np.float32))) == [band]
    assert band in (*BANDS, "none")


# --- ranks -------------------------------------------------------------------------------------


def rank(value: float, history: npt.ArrayLike) -> float:
    """The definition for one snapshot: share of the sizes before it that are smaller."""
    size = np.abs(np.asarray(history, dtype=np.float64))
    size = size[np.isfinite(size)]
    if not np.isfinite(value) or len(size) < 20:
        return NAN
    return float(np.mean(size < abs(value)) + 0.5 * np.mean(size == abs(value)))


def last_rank(values: Sequence[float]) -> float:
    """The rank of the last of the snapshots of one session."""
    return float(ranks(values, np.zeros(len(values)))[-1])


def test_a_rank_is_unknown_until_twenty_snapshots_exist() -> None:
    assert np.isnan(last_rank([*range(19), 5.0]))
    assert np.isnan(last_rank([*range(19), NAN, 5.0]))
    assert np.isnan(last_rank([*range(50), NAN]))
    assert last_rank([*range(20), 5.0]) == (5 + 0.5) / 20


def test_a_rank_looks_at_the_size_and_ties_count_half() -> None:
    history = [*range(-10, 0), *range(1, 11)]
    assert last_rank([*history, -5.0]) == last_rank([*history, 5.0]) == (8 + 1) / 20
    assert last_rank([*history, 100.0]) == 1
    assert last_rank([*history, 0.0]) == 0
    assert last_rank([*[7.0] * 30, -7.0]) == 0.5


def test_only_the_last_twenty_sessions_count() -> None:
    values = np.concatenate([np.full(20, 1000.0), np.ones(20), [2.0]])
    old = np.repeat([5, 10, 24], [20, 20, 1])
    assert ranks(values, old)[-1] == 0.5
    assert ranks(values, np.where(old == 24, 25, old))[-1] == 1.0
    assert np.isnan(ranks(values, np.where(old == 24, 30, old))[-1])


def test_snapshots_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="time order"):
        ranks([1.0, 2.0], [2, 1])


@given(seed=st.integers(0, 10**6), per_session=st.integers(1, 15), longest=st.integers(1, 6))
def test_the_ranks_of_a_batch_are_those_of_each_snapshot_and_its_past(
    seed: int, per_session: int, longest: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([NAN, -3.0, -2.0, 0.0, 1.0, 2.0, 3.5], 150)
    steps = np.where(np.arange(150) % per_session == 0, rng.integers(1, longest + 1, 150), 0)
    sessions = np.cumsum(steps)
    found = ranks(values, sessions)
    for i, value in enumerate(values):
        past = (np.arange(len(values)) < i) & (sessions > sessions[i] - 20)
        np.testing.assert_allclose(found[i], rank(value, values[past]), rtol=1e-12)
    for cut in (0, 50, 100):
        np.testing.assert_array_equal(ranks(values[:cut], sessions[:cut]), found[:cut])


def test_most_ranks_of_a_month_are_known() -> None:
    values = np.random.default_rng(0).normal(size=30 * 10)
    found = ranks(values, np.repeat(np.arange(30), 10))
    assert np.isnan(found[:20]).all()
    assert np.isfinite(found[20:]).all()
    assert found[20:].min() < 0.1 < 0.9 < found[20:].max()
