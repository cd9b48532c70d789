"""Pictures that are to be seen at once are short, and draw what they are given."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

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
