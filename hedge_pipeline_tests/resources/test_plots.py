"""Pictures that are to be seen at once are short, and draw what they are given."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from hedge_pipeline.insight import TriedModels
from hedge_pipeline.learning.drift import FEATURE_LIMIT
from hedge_pipeline.market.tables import PERFORMANCE
from hedge_pipeline.resources import plots

SHOWN_AT_ONCE = 1000  # characters of Markdown that Dagster's UI shows without a click
NAN = float("nan")


def drawn(markdown: str) -> list[list[tuple[float, float]]]:
    """Points of every line of the picture, absolute."""
    (address,) = re.findall(r"\]\(data:image/svg\+xml,([^)]*)\)", markdown)
    found = []
    for path in ElementTree.fromstring(unquote(address)).iter("{http://www.w3.org/2000/svg}path"):
        x = y = 0.0
        points = []
        for pen, along, rise in re.findall(r"([Mlm])(\d+),?(-?\d+)", path.get("d") or ""):
            x, y = (
                (float(along), float(rise)) if pen == "M" else (x + float(along), y + float(rise))
            )
            points.append((x, y))
        found.append(points)
    return found


@pytest.mark.parametrize("lines", [1, 2, 3])
@pytest.mark.parametrize("points", [1, 2, 390])
def test_a_glance_is_short_enough_to_be_shown_at_once(lines: int, points: int) -> None:
    rng = np.random.default_rng(7)
    given = [(f"SIM{i} P(up)", rng.normal(0, 1, points).cumsum()) for i in range(lines)]
    shown = plots.glance(given)
    assert len(shown) < SHOWN_AT_ONCE
    assert [len(points_of) for points_of in drawn(shown)] == [min(points, 110 // lines)] * lines


def test_a_glance_draws_the_course_on_one_scale_for_all_lines() -> None:
    up, high = drawn(plots.glance([("up", [0, 1, 2, 4]), ("high", [4, 4, 4, 4])]))
    assert up == [(0, 38), (80, 29), (160, 20), (240, 2)]
    assert high == [(0, 2), (80, 2), (160, 2), (240, 2)]


@pytest.mark.parametrize(
    ("values", "points"),
    [([0.0, NAN, 1.0], [(0, 38), (240, 2)]), ([NAN, 0.0, 1.0], [(120, 38), (240, 2)])],
)
def test_what_is_unknown_leaves_a_gap_in_a_glance(
    values: list[float], points: list[tuple[float, float]]
) -> None:
    shown = plots.glance([("one", values)])
    assert drawn(shown) == [points]
    assert ("m" in unquote(shown).split("d='")[1].split("'")[0]) is bool(np.isnan(values[1]))


@pytest.mark.parametrize("values", [[], [NAN, NAN]])
def test_a_glance_at_nothing_says_so(values: npt.ArrayLike) -> None:
    assert plots.glance([("one", values)]) == "nothing to draw"


def sums(sessions: int) -> pd.DataFrame:
    rows = {
        "symbol": "SIMQ",
        "session": [f"2024-03-{1 + i:02d}" for i in range(sessions)],
        "model_version": [1 + i // 3 for i in range(sessions)],
        "role": "served",
        "mode": "replay",
        "predictions": 390,
        "abstentions": 0,
        "labels": 380,
        "hits": [190 + 10 * (i % 3) for i in range(sessions)],
        "base_hits": 190,
        "log_loss": 262.0,
        "base_log_loss": 263.0,
        "raw_log_loss": 264.0,
        "brier": 95.0,
        "spread": 0.02,
    }
    return PERFORMANCE.conform(pd.DataFrame(rows))


@pytest.mark.parametrize("sessions", [1, 12])
def test_accuracy_is_drawn_with_its_interval_beside_the_base_rate(sessions: int) -> None:
    (axes,) = plots.scores(sums(sessions), "SIMQ", horizon=10).axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "served, last 10 sessions",
        "base rate",
    ]
    dots, line, base = axes.lines[:3]
    assert np.allclose(np.asarray(base.get_ydata(), dtype=float), 0.5)
    assert float(np.asarray(line.get_ydata(), dtype=float)[0]) == pytest.approx(0.5)
    assert len(np.asarray(dots.get_xdata())) == sessions
    (band,) = axes.collections
    corners = np.asarray(band.get_paths()[0].vertices, dtype=float)
    assert corners[:, 1].min() < 0.5 < corners[:, 1].max()
    assert len(axes.lines) - 3 == (sessions - 1) // 3  # where another version began to serve


def test_the_gain_is_drawn_in_ten_thousandths_of_a_nat() -> None:
    (axes,) = plots.gains(sums(12), "SIMQ").axes
    line = np.asarray(axes.lines[1].get_ydata(), dtype=float)
    assert np.allclose(line, 1e4 / 380)


def bars_and_gaps(
    missing: list[int], symbols: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Thirty minutes of 100 shares each, some of them missing for the first symbol."""
    parts = [
        pd.DataFrame(
            {
                "symbol": symbol,
                "bar_ts": pd.date_range("2024-03-01T14:30:00Z", periods=30, freq="min"),
                "close": 100.0 + np.arange(30),
                "volume": 100,
            }
        )
        for symbol in symbols
    ]
    gone = parts[0].loc[missing, ["symbol", "bar_ts"]]
    parts[0] = parts[0].drop(index=missing)
    return pd.concat(parts, ignore_index=True), gone


@pytest.mark.parametrize("symbols", [("SIMQ",), ("SIMQ", "SIMN")])
def test_the_volume_of_five_minutes_stands_below_the_price(symbols: tuple[str, ...]) -> None:
    bars, gaps = bars_and_gaps([7, 8], symbols)
    above, below = plots.prices(bars, gaps, "2024-03-01").axes
    drawn_bars: Any = below.patches
    heights = np.array([bar.get_height() for bar in drawn_bars]).reshape(len(symbols), 6)
    assert heights[sorted(symbols).index("SIMQ")].tolist() == [500, 300, 500, 500, 500, 500]
    assert heights.sum() == bars["volume"].sum()
    tops = [bar.get_y() + bar.get_height() for bar in drawn_bars][-6:]
    assert tops == heights.sum(axis=0).tolist()
    assert below.get_ylabel() == "shares, 5 min"
    covered = 100 * len(bars) / (len(bars) + 2)
    assert above.get_title(loc="left").endswith(f"2 gaps, coverage {covered:.1f} %")


def test_the_line_of_the_price_breaks_at_a_gap_and_the_minute_is_marked() -> None:
    bars, gaps = bars_and_gaps([7], ("SIMQ",))
    line, marked = plots.prices(bars, gaps, "2024-03-01").axes[0].lines
    drawn_values = np.asarray(line.get_ydata(), dtype=float)
    assert np.flatnonzero(np.isnan(drawn_values)).tolist() == [7]
    assert drawn_values[[0, 6, 8]] == pytest.approx([0.0, 6.0, 8.0])
    assert len(np.asarray(marked.get_xdata())) == 1
    assert marked.get_label() == "gap"


def test_hourly_bars_have_their_volume_by_the_hour() -> None:
    bars, gaps = bars_and_gaps([], ("SIMQ",))
    bars["bar_ts"] = pd.date_range("2024-03-01T14:00:00Z", periods=30, freq="h")
    below: Any = plots.prices(bars, gaps, "2024-03-01").axes[1]
    assert [bar.get_height() for bar in below.patches] == [100] * 30
    assert below.get_ylabel() == "shares, 60 min"


def test_what_moved_most_is_drawn_beside_the_alarm() -> None:
    moves = {"SIMQ": {"a": 5.0, "b": 0.1, "c": -1.0}, "SIMN": {"a": 0.5, "c": -6.0}}
    (axes,) = plots.feature_moves(moves, "2024-03-01", most=2).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "c"]
    dots = {line.get_label(): np.asarray(line.get_xdata(), dtype=float) for line in axes.lines}
    assert {name: x.tolist() for name, x in dots.items() if name in moves} == {
        "SIMQ": [5.0, -1.0],
        "SIMN": [0.5, -6.0],
    }
    assert dots["alarm"].tolist() == [FEATURE_LIMIT] * 2


def test_reliability_is_drawn_in_bins_with_intervals() -> None:
    rng = np.random.default_rng(7)
    said = rng.uniform(0.3, 0.7, 5000)
    up = (rng.uniform(size=5000) < said).astype(float)
    (axes,) = plots.tried(TriedModels(said, up, 3, 9, 13), "SIMQ").axes
    assert "v3 to v9 on sessions after training" in axes.get_title(loc="left")
    (errors,) = axes.containers
    observed = np.asarray(errors[0].get_ydata(), dtype=float)
    assert len(observed) == 5
    assert np.abs(observed - np.asarray(errors[0].get_xdata(), dtype=float)).max() < 0.05
