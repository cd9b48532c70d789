"""Small pictures for the two UIs. Drawn with Agg, no display, and returned as figures or PNG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    from matplotlib.figure import Figure

    from hedge_pipeline.insight import TriedModels
    from hedge_pipeline.stages import Deployment

_SIZE = (7.0, 2.6)
_WIDE = (5.4, 3.4)
_DPI = 110
# readable on white and on near-black
_INK = "#7a869a"
_BLUE = "#4c8bf5"
_ORANGE = "#e8912d"
_GREEN = "#2e9e6b"
_RED = "#d9534f"
_CYCLE = (_BLUE, _ORANGE, _GREEN, "#9b6bdf", "#2aa7b8", "#b07d4b")


def _figure(title: str, size: tuple[float, float] = _SIZE) -> tuple[Figure, Any]:
    figure = _empty(size)
    axes = figure.subplots()
    _plain(axes, title)
    return figure, axes


def _empty(size: tuple[float, float]) -> Figure:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def _plain(axes: Any, title: str = "") -> None:
    axes.set_prop_cycle(color=_CYCLE)
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)
        spine.set_linewidth(0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _legend(axes: Any) -> None:
    axes.legend(fontsize=8, frameon=False, labelcolor=_INK, loc="best")


def data_uri(figure: Figure, dpi: float = _DPI) -> str:
    """The figure as the address of an image that needs no request."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def markdown(figure: Figure) -> str:
    """The figure as an image in Markdown, for asset metadata."""
    return f"![plot]({data_uri(figure)})"


def glance(lines: Sequence[tuple[str, npt.ArrayLike]]) -> str:
    """A few lines on one scale, as an image in Markdown so short that Dagster shows it at once.

    What has a thousand characters or more is shown there only when asked for. The scale is not
    drawn; below the picture stands which colour is what.

    Args:
        lines: at most three, what it is and its values; NaN leaves a gap. All have one length.
    """
    import numpy as np

    rows = np.array([np.asarray(values, dtype=np.float64) for _, values in lines])
    most = 110 // len(lines)
    if rows.shape[1] > most:
        rows = rows[:, np.linspace(0, rows.shape[1] - 1, most).round().astype(int)]
    known = rows[np.isfinite(rows)]
    if not len(known):
        return "nothing to draw"
    low, room = float(known.min()), float(known.max() - known.min()) or 1.0
    step = 240 // max(rows.shape[1] - 1, 1)
    paths, names = "", []
    for (name, _), values, (color, word) in zip(lines, rows, _GLANCE_COLORS, strict=False):
        way = _path(np.round(38 - 36 * (values - low) / room), step)
        paths += f"<path d='{way}' stroke='{color}'/>"
        names.append(f"{word} {name}")
    svg = (
        "<svg xmlns='http://www.w3.org/2000/svg' width='330' height='55' viewBox='0 0 240 40' "
        f"fill='none'>{paths}</svg>"
    )
    address = f"data:image/svg+xml,{quote(svg, safe=_SAFE)}"
    return f"![plot]({address})\n\n{', '.join(names)}"


_SAFE = "/:='+,;$!*~"
_GLANCE_COLORS = ((_BLUE, "blue:"), (_ORANGE, "orange:"), (_GREEN, "green:"))


def _path(heights: Any, step: int) -> str:
    """Relative path of an SVG through whole heights, `step` apart; NaN leaves a gap."""
    way, behind, last = "", 0, None
    for place, height in enumerate(heights):
        if math.isnan(height):
            continue
        if last is None:
            way = f"M{place * step},{height:.0f}"
        else:
            along = (place - behind) * step
            rise = f"{height - last:.0f}"
            pen = "l" if place == behind + 1 else "m"
            way += f"{pen}{along}{'' if rise.startswith('-') else ','}{rise.replace('-0', '0')}"
        behind, last = place, height
    return way


def prices(bars: pd.DataFrame, gaps: pd.DataFrame, session: str) -> Figure:
    """Close of every symbol relative to its first one, percent, over the volume of five minutes.

    A line breaks where a bar is missing; below it the missing ones are marked in red. Volumes of
    several symbols stand on each other; a bar longer than five minutes stands alone.
    """
    import pandas as pd

    figure = _empty((7.0, 3.4))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    covered = 100 * len(bars) / (len(bars) + len(gaps))
    words = f"{len(gaps)} gap{'s' * (len(gaps) > 1)}, " if len(gaps) else ""
    step = _volume_step(bars)
    _plain(above, f"{session}, percent of the first close: {words}coverage {covered:.1f} %")
    _plain(below)
    stacked: Any = 0.0
    for symbol, own in bars.groupby("symbol", sort=True):
        missing = gaps.loc[gaps["symbol"] == symbol, ["bar_ts"]]
        line = pd.concat([own[["bar_ts", "close"]], missing]).sort_values("bar_ts")
        relative = 100 * (line["close"].astype(float) / own["close"].iloc[0] - 1)
        (drawn,) = above.plot(line["bar_ts"], relative, linewidth=1, label=str(symbol))
        volume = own.groupby(own["bar_ts"].dt.floor(step))["volume"].sum().astype(float)
        volume = volume.reindex(pd.date_range(*_ends(bars, step), freq=step), fill_value=0.0)
        below.bar(
            volume.index,
            volume.to_numpy(),
            width=0.8 * step,
            align="edge",
            bottom=stacked,
            color=drawn.get_color(),
        )
        stacked = stacked + volume.to_numpy()
    if len(gaps):
        low = above.get_ylim()[0]
        above.plot(gaps["bar_ts"], [low] * len(gaps), "|", color=_RED, label="gap")
    below.set_ylabel(f"shares, {step.total_seconds() / 60:g} min", fontsize=8)
    below.yaxis.set_major_formatter(_short_number)
    above.set_ylabel("%", fontsize=8)
    _time_axis(below)
    _legend(above)
    return figure


def _volume_step(bars: pd.DataFrame) -> pd.Timedelta:
    """Five minutes, or the time from bar to bar if that is longer."""
    import pandas as pd

    spacing = bars["bar_ts"].drop_duplicates().sort_values().diff().min()
    return max(pd.Timedelta("5min"), spacing) if spacing == spacing else pd.Timedelta("5min")


def _ends(bars: pd.DataFrame, step: pd.Timedelta) -> tuple[pd.Timestamp, pd.Timestamp]:
    """First and last bar on a grid."""
    return bars["bar_ts"].min().floor(step), bars["bar_ts"].max().floor(step)


def _short_number(value: float, _position: int) -> str:
    """1200000 as 1.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


_LEVEL_STYLES = {
    "hp_support": ("HP support", _GREEN, "-"),
    "hp_resistance": ("HP resistance", _RED, "-"),
    "mhp_support": ("MHP support", _GREEN, "--"),
    "mhp_resistance": ("MHP resistance", _RED, "--"),
    "gamma_flip": ("gamma flip", _ORANGE, "-."),
    "put_oi_wall": ("largest put OI", _GREEN, ":"),
    "call_oi_wall": ("largest call OI", _RED, ":"),
}


def levels(bars: pd.DataFrame, rows: pd.DataFrame, title: str) -> Figure:
    """Price of one symbol and session with the hedge levels from when they were available.

    Levels more than 3 % away from the price are outside the picture.
    """
    figure, axes = _figure(f"{title}: price and hedge levels", (7.0, 3.4))
    axes.plot(bars["bar_ts"], bars["close"], linewidth=1, color=_BLUE, label="price")
    rows = rows.sort_values("available_at")
    end = bars["bar_ts"].max() if len(bars) else rows["available_at"].max()
    times = [*rows["available_at"], max(end, rows["available_at"].max())]
    for name, (label, color, style) in _LEVEL_STYLES.items():
        values = rows[name].to_numpy(dtype=float)
        if not all(math.isnan(value) for value in values):
            axes.step(
                times,
                [*values, values[-1]],
                where="post",
                color=color,
                linestyle=style,
                label=label,
            )
    if len(bars):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.97 * bars["low"].min()), min(high, 1.03 * bars["high"].max()))
    _time_axis(axes)
    axes.legend(
        fontsize=7, frameon=False, labelcolor=_INK, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    return figure


def gamma_profile(spots: Any, values: Any, newest: pd.Series[Any], title: str) -> Figure:
    """Gamma exposure re-priced over the spot, with the spot and the flip."""
    figure, axes = _figure(f"{title}: gamma exposure by price, million dollars per 1 %")
    axes.plot(spots, values / 1e6, color=_BLUE, linewidth=1.2)
    axes.axhline(0, color=_INK, linewidth=0.6)
    axes.axvline(float(newest["spot"]), color=_INK, linewidth=0.8, linestyle=":", label="spot")
    if not math.isnan(float(newest["gamma_flip"])):
        axes.axvline(
            float(newest["gamma_flip"]), color=_ORANGE, linewidth=0.8, linestyle="-.", label="flip"
        )
    _legend(axes)
    return figure


def confidence(bins: Sequence[Mapping[str, Any]], symbol: str) -> Figure:
    """Confidence against the share of right directions; on the diagonal both are equal."""
    known = [one for one in bins if one["n"]]
    figure, axes = _figure(f"{symbol}: reliability of confidence", (4.6, 3.4))
    most = max(one["n"] for one in known)
    said = [one["confidence"] for one in known]
    low, high = min([*said, 0.45]), max([*said, 0.55])
    axes.plot([low, high], [low, high], color=_INK, linewidth=0.6, linestyle=":")
    axes.plot(said, [one["frequency"] for one in known], color=_BLUE, linewidth=0.8)
    sizes = [12 + 80 * one["n"] / most for one in known]
    axes.scatter(said, [one["frequency"] for one in known], s=sizes, color=_BLUE)
    axes.set_xlabel("confidence", fontsize=8)
    axes.set_ylabel("share of right directions", fontsize=8)
    return figure


def false_positives(by_session: Mapping[str, Mapping[str, Any]], symbol: str) -> Figure:
    """Share of each session's signals that did not win."""
    known = {k: v for k, v in by_session.items() if v["false_positive_rate"] is not None}
    figure, axes = _figure(f"{symbol}: share of signals that did not win, by session")
    rates = [one["false_positive_rate"] for one in known.values()]
    axes.plot(range(len(known)), rates, "o", markersize=3, color=_ORANGE)
    axes.set_ylim(-0.05, 1.05)
    _session_axis(axes, list(known))
    return figure


def probabilities(log: pd.DataFrame, session: str) -> Figure:
    """Trusted probability of up of the served rows, with the base rate."""
    figure, axes = _figure(f"probability of up in {session}")
    for symbol, own in log[log["role"] == "served"].groupby("symbol", sort=True):
        own = own.sort_values("bar_ts")
        axes.plot(own["bar_ts"], own["prob_up"].astype(float), linewidth=1, label=str(symbol))
    axes.axhline(0.5, color=_INK, linewidth=0.6, linestyle=":")
    _time_axis(axes)
    _legend(axes)
    return figure


def hits_by_hour(rows: pd.DataFrame, session: str) -> Figure:
    """Share of right directions by hour of the session (UTC); rows carry `hit`."""
    figure, axes = _figure(f"hit rate by hour in {session} (UTC)")
    by_hour = rows.groupby(rows["bar_ts"].dt.hour)["hit"].mean()
    hours = [int(str(hour)) for hour in by_hour.index]
    axes.bar(hours, by_hour.to_numpy(dtype=float), color=_BLUE)
    axes.set_xticks(hours)
    axes.axhline(0.5, color=_INK, linewidth=0.6, linestyle=":")
    axes.set_ylim(0, 1)
    return figure


def importance(
    gain: dict[str, float], symbol: str, what: str = "share of gain", most: int = 12
) -> Figure:
    """Share of the total by feature, the largest first."""
    total = sum(gain.values()) or 1.0
    best = sorted(gain.items(), key=lambda item: item[1])[-most:]
    figure, axes = _figure(f"{symbol}: importance, {what}", (7.0, 3.2))
    axes.barh([name for name, _ in best], [value / total for _, value in best], color=_BLUE)
    return figure


def feature_moves(moves: Mapping[str, Mapping[str, float]], session: str, most: int = 12) -> Figure:
    """The features that moved most in the last five sessions, a dot for each symbol.

    Args:
        moves: standard errors by symbol and feature, see `insight.feature_moves`.
        session: the last one.
        most: features shown.
    """
    from hedge_pipeline.learning.drift import FEATURE_LIMIT, RECENT

    largest: dict[str, float] = {}
    for own in moves.values():
        for name, size in own.items():
            largest[name] = max(largest.get(name, 0.0), abs(size))
    shown = sorted(largest, key=lambda name: largest[name])[-most:]
    figure, axes = _figure(
        f"what moved most in {RECENT} sessions to {session}, standard errors", (7.0, 3.2)
    )
    for symbol, own in sorted(moves.items()):
        known = [name for name in shown if name in own]
        places = [shown.index(name) for name in known]
        axes.plot([own[name] for name in known], places, "o", markersize=5, label=symbol)
    for place, words in ((-FEATURE_LIMIT, None), (FEATURE_LIMIT, "alarm")):
        axes.axvline(place, color=_RED, linewidth=0.8, linestyle="--", label=words)
    axes.axvline(0, color=_INK, linewidth=0.6)
    axes.set_yticks(range(len(shown)), shown)
    axes.legend(
        fontsize=8, frameon=False, labelcolor=_INK, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    return figure


def tried(found: TriedModels, symbol: str, bins: int = 5) -> Figure:
    """Observed share of ups against what the log has of the models of that time.

    Bars are 95 % intervals as if outcomes were independent; as they overlap, the true ones are
    wider. The dashed line is perfect calibration.
    """
    import numpy as np

    from hedge_pipeline.learning.calibration import reliability as binned

    one = binned(found.probability, found.up, bins)
    spread = 1.96 * np.sqrt(one.observed * (1 - one.observed) / one.count)
    versions = f"v{found.first} to v{found.last}" if found.first != found.last else f"v{found.last}"
    figure, axes = _figure(f"{symbol}: reliability of {versions} on sessions after training", _WIDE)
    ends = [float(one.predicted.min()), float(one.predicted.max())]
    axes.plot(ends, ends, color=_INK, linewidth=0.8, linestyle="--", label="perfect calibration")
    axes.errorbar(
        one.predicted,
        one.observed,
        spread,
        fmt="o-",
        color=_BLUE,
        markersize=4,
        linewidth=1,
        elinewidth=0.8,
        label=f"{len(found.up):,} outcomes of {found.sessions} sessions",
    )
    axes.set_xlabel("the model's own probability of up", fontsize=8)
    axes.set_ylabel("share of ups", fontsize=8)
    _legend(axes)
    return figure


def evidence(promotions: pd.DataFrame, needed: float, symbol: str) -> Figure:
    """log10 of the evidence by session, with the line of proof and the changes of state."""
    folds = promotions[promotions["kind"] == "fold"].sort_values("session")
    figure, axes = _figure(f"{symbol}: evidence of skill (log10; proven above the line)")
    x = list(range(len(folds)))
    axes.plot(x, folds["evidence"].to_numpy(dtype=float) / math.log(10), color=_BLUE, linewidth=1.2)
    axes.axhline(math.log10(needed), color=_GREEN, linewidth=0.8, linestyle="--")
    for position, event in zip(x, folds["event"], strict=True):
        if isinstance(event, str):
            color = _GREEN if event == "skill_proven" else _RED
            axes.axvline(position, color=color, linewidth=0.8)
    _session_axis(axes, list(folds["session"]))
    return figure


SMOOTHED = 10


def scores(sums: pd.DataFrame, symbol: str, horizon: int) -> Figure:
    """Accuracy of the served stream over sessions against always saying the base rate.

    Dots are single sessions. The line is the accuracy of the last ten, its band the 95 % interval
    from resampling these sessions whole; dotted lines are where another version began to serve.

    Args:
        sums: rows of `performance` of one symbol.
        symbol: for the title.
        horizon: label horizon, bars.
    """
    import numpy as np

    from hedge_pipeline.learning import scoring

    served, by_session = _served(sums)
    figure, axes = _figure(f"{symbol}: accuracy over sessions, with 95 % interval")
    x = np.arange(len(by_session))
    axes.plot(x, by_session["hits"] / by_session["labels"], ".", color=_BLUE, alpha=0.45)
    windows = [
        scoring.score(own, horizon, draws=300) for own in _windows(served, list(by_session.index))
    ]
    low, high = ([getattr(one, end) for one in windows] for end in ("lo", "hi"))
    axes.fill_between(x, low, high, color=_BLUE, alpha=0.2, linewidth=0)
    words = f"served, last {SMOOTHED} sessions"
    axes.plot(x, [one.value for one in windows], color=_BLUE, linewidth=1.5, label=words)
    base = [one.base_rate for one in windows]
    axes.plot(x, base, color=_ORANGE, linewidth=1.2, label="base rate")
    _mark_versions(axes, served, list(by_session.index))
    _session_axis(axes, list(by_session.index))
    _legend_above(axes)
    return figure


def gains(sums: pd.DataFrame, symbol: str) -> Figure:
    """Log-loss gained over the base rate by session, 1e-4 nats per label; above 0 is better.

    Drawn like `scores`; with fewer than five sessions there is no interval. The scale follows the
    line and its band: single sessions scatter widely and may lie outside.
    """
    import numpy as np

    from hedge_pipeline.learning import scoring

    served, by_session = _served(sums)
    figure, axes = _figure(f"{symbol}: log-loss gained over the base rate")
    x = np.arange(len(by_session))
    single = 1e4 * (by_session["base_log_loss"] - by_session["log_loss"]) / by_session["labels"]
    axes.plot(x, single, ".", color=_BLUE, alpha=0.45)
    windows = [scoring.skill(own, draws=300) for own in _windows(served, list(by_session.index))]
    low, high = ([getattr(one, end) for one in windows] for end in ("lo", "hi"))
    axes.fill_between(x, low, high, color=_BLUE, alpha=0.2, linewidth=0)
    words = f"served, last {SMOOTHED} sessions"
    axes.plot(x, [one.gain for one in windows], color=_BLUE, linewidth=1.5, label=words)
    axes.axhline(0, color=_ORANGE, linewidth=1.2, label="base rate")
    drawn = [x for x in (*low, *high, *(one.gain for one in windows), 0.0) if not math.isnan(x)]
    room = 0.5 * (max(drawn) - min(drawn)) or 1.0
    axes.set_ylim(min(drawn) - room, max(drawn) + room)
    axes.set_ylabel("1e-4 nats per label", fontsize=8)
    _mark_versions(axes, served, list(by_session.index))
    _session_axis(axes, list(by_session.index))
    _legend_above(axes)
    return figure


def _served(sums: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scored rows of the served stream, and their sums by session."""
    served = sums[(sums["role"] == "served") & (sums["labels"] > 0)]
    names = ["hits", "base_hits", "labels", "log_loss", "base_log_loss"]
    return served, served.groupby("session", sort=True)[names].sum()


def _windows(served: pd.DataFrame, labels: Sequence[str]) -> list[pd.DataFrame]:
    """The rows of every session with those of the sessions before it, ten in all."""
    parts = {str(label): own for label, own in served.groupby("session")}
    import pandas as pd

    return [
        pd.concat([parts[x] for x in labels[max(0, end - SMOOTHED) : end]])
        for end in range(1, len(labels) + 1)
    ]


def _mark_versions(axes: Any, served: pd.DataFrame, labels: Sequence[str]) -> None:
    """Dotted lines where another version began to serve, if they are few enough to be seen."""
    begun = served.groupby("model_version")["session"].min()
    if not 1 < len(begun) <= 30:
        return
    for session in begun.iloc[1:]:
        axes.axvline(labels.index(session), color=_INK, linewidth=0.6, linestyle=":", alpha=0.7)


def _legend_above(axes: Any) -> None:
    axes.legend(
        fontsize=8,
        frameon=False,
        labelcolor=_INK,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.98),
        ncols=2,
        borderaxespad=0.1,
    )


def reliability(deployment: Deployment, symbol: str) -> Figure:
    """Reliability diagram: share of ups against served probability; dashed, perfect calibration."""
    from hedge_pipeline import insight
    from hedge_pipeline.learning.calibration import reliability as binned

    probability, up = insight.served_probabilities(deployment, symbol)
    figure, axes = _figure(f"{symbol}: reliability diagram", (4.2, 3.4))
    if len(up):
        bins = binned(probability, up)
        ends = [float(bins.predicted.min()), float(bins.predicted.max())]
        axes.plot(ends, ends, color=_INK, linewidth=0.8, linestyle="--")
        axes.plot(bins.predicted, bins.observed, "o-", color=_BLUE, markersize=4, linewidth=1)
    axes.set_xlabel("served probability of up", fontsize=8)
    axes.set_ylabel("share of ups", fontsize=8)
    return figure


def _time_axis(axes: Any) -> None:
    from matplotlib.dates import DateFormatter

    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))  # type: ignore[no-untyped-call]
    axes.set_xlabel("UTC", fontsize=8)


def _session_axis(axes: Any, labels: list[str]) -> None:
    if not labels:
        return
    step = max(1, len(labels) // 6)
    axes.set_xticks(range(0, len(labels), step), labels[::step])


def against_oracle(
    skill: pd.DataFrame,
    events: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
    smooth: int = 10,
) -> Figure:
    """Skill of the served probability and of the oracle by session, on one scale for all symbols.

    The scale follows the smoothed lines; single sessions scatter widely and may lie outside.

    Args:
        skill: symbol, session, served and oracle, 1e-4 nats per label above the base rate.
        events: by symbol, `session` and `event` of every change of state; see `summary.json`.
        smooth: sessions of the moving means.
    """
    from matplotlib.figure import Figure

    symbols = sorted(skill["symbol"].unique(), reverse=True)
    figure = Figure(figsize=(10, 0.6 + 2.9 * len(symbols)), dpi=110, layout="constrained")
    all_axes = figure.subplots(len(symbols), squeeze=False, sharex=True, sharey=True)[:, 0]
    lines: list[float] = [0.0]
    for axes, symbol in zip(all_axes, symbols, strict=True):
        own = skill[skill["symbol"] == symbol].sort_values("session").reset_index(drop=True)
        for name, color, words in (
            ("oracle", _GREEN, "the best possible"),
            ("served", _BLUE, "what was served"),
        ):
            mean = own[name].rolling(smooth, min_periods=min(3, smooth)).mean()
            axes.plot(own[name], ".", color=color, markersize=3, alpha=0.35)
            axes.plot(mean, color=color, linewidth=1.8, label=f"{words} (mean of {smooth})")
            lines.extend(mean.dropna())
        axes.axhline(0, color=_INK, linewidth=0.8)
        _mark_events(axes, list(own["session"]), (events or {}).get(str(symbol), ()))
        axes.set_title(str(symbol), loc="left", fontsize=11, fontweight="bold")
        axes.set_ylabel("skill, 1e-4 nats", fontsize=9)
        axes.tick_params(labelsize=9, labelbottom=True)
        axes.spines[["top", "right"]].set_visible(False)
        _session_axis(axes, list(own["session"]))
        axes.legend(
            fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=4
        )
    room = 0.35 * (max(lines) - min(lines)) or 1.0
    all_axes[0].set_ylim(min(lines) - room, max(lines) + room)
    figure.suptitle(
        "How much the log-loss was better than the base rate's; dots are single sessions",
        fontsize=10,
        x=0.01,
        horizontalalignment="left",
    )
    return figure


def _mark_events(axes: Any, labels: list[str], events: Sequence[Mapping[str, str]]) -> None:
    """Vertical lines where skill was proven or lost; each kind once in the legend."""
    named: set[str] = set()
    for event in events:
        if event["session"] not in labels:
            continue
        proven = event["event"] == "skill_proven"
        words = "PROVEN" if proven else "LOST"
        axes.axvline(
            labels.index(event["session"]),
            color=_GREEN if proven else _RED,
            linestyle="--",
            linewidth=1.4,
            label=None if words in named else f"skill {words}",
        )
        named.add(words)
