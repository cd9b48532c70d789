"""Can the loop be fooled, and does it learn? Worlds with a known truth, through the whole product.

Every world is replayed by `hedge_pipeline.replay` into a store of its own: bars, features,
predictions, outcomes, folds, trainings, guards, verdicts. Ten runs of a world are ten symbols of
one replay. What was served is then read from the tables and set beside the exact oracle and beside
the rules other loops use (`naive_rules`) on the same candidates and rows.

Skill is in 1e-4 nats per label: log-loss of the base rate minus log-loss of what was served.

    python -m benchmarks.learning_worlds                    # everything, about an hour
    python -m benchmarks.learning_worlds --only NOISE,FLIP  # measure some, report what is there
    python -m benchmarks.learning_worlds --bars bars.parquet --symbols QQQ,SPY

Exit status 1 when a number misses what it must reach.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from benchmarks import gate_power, guard_sabotage, honest_table
from benchmarks.naive_rules import RULES, Candidates
from benchmarks.worlds import CHANGE, DemoSource, WorldSource, exchanged_outcomes
from hedge_pipeline import stages
from hedge_pipeline.learning import gate
from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources import MarketSource, SourceOptions
from hedge_pipeline.market.sources.simulated import SimulatedSource
from hedge_pipeline.market.tables import OUTCOMES, PREDICTION_LOG
from hedge_pipeline.probability import log_likelihood, logit
from hedge_pipeline.replay import replay
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment, deploy

Floats = npt.NDArray[np.float64]
OpenSource = Callable[[SessionCalendar], MarketSource]

SESSIONS = 120
LEARNED = 20


@dataclass(frozen=True)
class World:
    """One replay: which market, how many runs of it, and what is changed in the product.

    Attributes:
        market: name in `worlds.WORLDS`, or SIMQ or SIMN for the demo's market.
        runs: symbols.
        sessions: length.
        forgets: skill can be lost; otherwise the candidates are those of a loop without a gate.
        exchanged: every session gets the outcomes of another one.
        chains: the demo's market serves its option chains, too.
    """

    market: str
    runs: int
    sessions: int = SESSIONS
    forgets: bool = True
    exchanged: bool = False
    chains: bool = True


CAMPAIGN: dict[str, World] = {
    "NOISE": World("NOISE", 10),
    "EDGE52": World("EDGE52X", 5),
    "EDGE54": World("EDGE54X", 6),
    "EDGE56": World("EDGE56X", 5),
    "EDGE58": World("EDGE58X", 5),
    "FLIP": World("FLIP", 6),
    "FLIP_PLAIN": World("FLIP", 6, forgets=False),
    "VANISH": World("VANISH", 4),
    "VANISH_PLAIN": World("VANISH", 4, forgets=False),
    "SHUFFLED": World("EDGE56X", 10, exchanged=True),
    "DEMO": World("SIMQ", 10, 100),
    "DEMO_BARS": World("SIMQ", 10, 100, chains=False),
    "DEMO_CONTROL": World("SIMN", 5, 100),
}


@dataclass(frozen=True)
class Run:
    """One run of a world by session; likelihoods are sums over labels in nats.

    Attributes:
        labels: number of labels with a prediction slot.
        base: log-likelihood of the base rate.
        served: of the trusted probability, as logged.
        proof: the same while skill was proven, the base rate otherwise.
        raw: of the unshrunk newest model.
        oracle: of the exact probability; NaN where the world does not tell.
        evidence: natural log after the session.
        skill: state after the session.
        events: (session, event, cause) of every change of state.
        promotions: verdicts that said promote.
        naive: by rule: likelihood by session, promotions, claimed accuracy.
    """

    labels: Floats
    base: Floats
    served: Floats
    proof: Floats
    raw: Floats
    oracle: Floats
    evidence: Floats
    trust: Floats
    skill: list[str]
    events: list[tuple[int, str, str]]
    promotions: int
    naive: dict[str, tuple[Floats, int, float]]

    def gain(self, what: Floats, first: int = LEARNED, last: int = SESSIONS) -> float:
        """Skill of a stream over the sessions from `first` to `last` (excluded)."""
        part = slice(first, last)
        return float(1e4 * (what[part] - self.base[part]).sum() / self.labels[part].sum())

    def sessions_of(self, event: str) -> list[int]:
        """Sessions of one kind of event, counted from 0."""
        return [session for session, kind, _ in self.events if kind == event]

    def to_json(self) -> dict[str, Any]:
        """Lists instead of arrays."""
        found = asdict(self)
        plain: dict[str, Any] = json.loads(json.dumps(found, default=lambda array: array.tolist()))
        return plain

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Run:
        """The inverse of `to_json`."""
        names = ("labels", "base", "served", "proof", "raw", "oracle", "evidence", "trust")
        arrays = {name: np.array(values[name], dtype=np.float64) for name in names}
        events = [(int(s), str(e), str(c)) for s, e, c in values["events"]]
        naive = {
            rule: (np.array(found, dtype=np.float64), int(count), float(claim))
            for rule, (found, count, claim) in values["naive"].items()
        }
        return cls(**{**values, **arrays, "events": events, "naive": naive})


# --- one world --------------------------------------------------------------------------------


def measure(world: World, seed: int, folder: Path) -> list[Run]:
    """Replays a world and reads what came of it."""
    deployment = open_world(world, seed, folder)
    labels = deployment.calendar.labels[: world.sessions]
    patch = (
        mock.patch.object(stages, "mature_outcomes", exchanged_outcomes(world.sessions))
        if world.exchanged
        else nullcontext()
    )
    with patch:
        replay(deployment, labels)
    return [read_run(deployment, symbol, labels) for symbol in deployment.symbols]


def open_world(world: World, seed: int, folder: Path) -> Deployment:
    """A replay deployment on the world, before its first session."""
    symbols = [f"{world.market}{run}" for run in range(world.runs)]
    settings = load_settings(
        HEDGE_MODE="replay",
        HEDGE_DATA_URL=str(folder),
        HEDGE_SYMBOLS=",".join(symbols),
        HEDGE_HISTORY_START="2024-01-02",
        RETRAIN_HOUR=2,
    )
    deployment = deploy(settings, _market(world, seed))
    if world.forgets:
        return deployment
    return replace(deployment, rule=replace(deployment.rule, draw=1e300, stale=10**9))


def _market(world: World, seed: int) -> OpenSource:
    def open_demo(calendar: SessionCalendar) -> MarketSource:
        return DemoSource(
            lambda number: SimulatedSource(SourceOptions(calendar, seed=number)), world.chains
        )

    def open_world_source(calendar: SessionCalendar) -> MarketSource:
        return WorldSource(calendar, seed)

    return open_demo if world.market.startswith("SIM") else open_world_source


def read_run(deployment: Deployment, symbol: str, sessions: Sequence[str]) -> Run:
    """What the tables say of one symbol of a finished replay."""
    rows = _rows(deployment, symbol)
    by_session = dict(tuple(rows.groupby("session", sort=True)))
    served = [_session(deployment, symbol, label, by_session[label]) for label in sessions]
    columns = {name: np.array([one[name] for one in served]) for name in served[0]}
    rates = columns.pop("base_rate")
    entries = deployment.ledger(symbol).entries
    folds = entries[entries["kind"] == "fold"].set_index("session").loc[list(sessions)]
    events = [
        (place, str(event), "draw" if "factor" in reason else "stale")
        for place, (event, reason) in enumerate(zip(folds["event"], folds["reason"], strict=True))
        if isinstance(event, str)
    ]
    candidates = Candidates(deployment, symbol, tuple(sessions), rates)
    naive = {}
    for name, rule in RULES.items():
        found = rule(candidates)
        naive[name] = (found.likelihood, found.promotions, found.claim)
    return Run(
        **columns,
        evidence=folds["evidence"].to_numpy(dtype=np.float64),
        trust=folds["trust"].to_numpy(dtype=np.float64),
        skill=list(folds["skill"]),
        events=events,
        promotions=int((entries["event"] == "promote").sum()),
        naive=naive,
    )


def _rows(deployment: Deployment, symbol: str) -> Any:
    log = deployment.store.read(PREDICTION_LOG, symbols=[symbol])
    log = log[log["role"] == "served"]
    outcomes = deployment.store.read(OUTCOMES, symbols=[symbol])
    outcomes = outcomes[outcomes["actual_direction"].notna()]
    rows = log.merge(outcomes[["bar_ts", "actual_direction"]], on="bar_ts")
    local = rows["bar_ts"].dt.tz_convert(deployment.calendar.timezone)
    return rows.assign(session=local.dt.strftime("%Y-%m-%d"))


def _session(deployment: Deployment, symbol: str, label: str, rows: Any) -> dict[str, float]:
    up = rows["actual_direction"].to_numpy(dtype=np.float64)
    base = logit(rows["base_rate"].to_numpy(dtype=np.float64))
    margin = np.nan_to_num(rows["margin"].to_numpy(dtype=np.float64))
    said = rows["prob_up"].to_numpy(dtype=np.float64)
    trusted = np.where(np.isnan(said), base, logit(np.where(np.isnan(said), 0.5, said)))
    proven = (rows["skill"] == "proven").to_numpy()
    streams = {
        "base": base,
        "served": trusted,
        "proof": np.where(proven, trusted, base),
        "raw": base + margin,
        "oracle": _oracle(deployment, symbol, label, rows),
    }
    sums = {name: float(log_likelihood(eta, up).sum()) for name, eta in streams.items()}
    return {**sums, "labels": float(len(up)), "base_rate": float(rows["base_rate"].iloc[0])}


def _oracle(deployment: Deployment, symbol: str, label: str, rows: Any) -> Floats:
    source = deployment.source
    if not isinstance(source, WorldSource):
        return np.full(len(rows), np.nan)
    times = rows["bar_ts"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    minutes = deployment.calendar.session(label).index_of(times)
    return logit(source.truth(symbol, label).oracle[minutes])


# --- what must be reached -----------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One line of the report; `reached` is None where nothing is demanded."""

    benchmark: str
    case: str
    measured: str
    must_reach: str
    reference: str
    reached: bool | None


Found = dict[str, list[Run]]


def first_proof(run: Run) -> int | None:
    """Session of the first proof, None = never."""
    proofs = run.sessions_of("skill_proven")
    return proofs[0] if proofs else None


def loss_after(run: Run, change: int) -> int | None:
    """Sessions from a change to the first loss after it, None = never (or nothing to lose)."""
    losses = [session for session in run.sessions_of("skill_lost") if session >= change]
    return losses[0] - change + 1 if losses else None


def mean_gain(runs: Sequence[Run], what: str, first: int = LEARNED, last: int = SESSIONS) -> float:
    """Mean over runs of the skill of `served`, `proof`, `raw`, `oracle` or of a naive rule."""
    streams = [getattr(run, what) if hasattr(run, what) else run.naive[what][0] for run in runs]
    return float(
        np.mean([run.gain(one, first, last) for run, one in zip(runs, streams, strict=True)])
    )


def crossing(runs: Sequence[Run], what: str = "served") -> int | None:
    """Sessions from the flip until the mean skill of five sessions is not negative any more."""
    by_session = [
        mean_gain(runs, what, session, session + 1) for session in range(CHANGE, SESSIONS)
    ]
    means = np.convolve(by_session, np.ones(5) / 5, mode="valid")
    above = np.flatnonzero(means >= 0)
    return int(above[0]) + 5 if len(above) else None


def claims(found: Found) -> list[Claim]:
    """Every line the measured worlds allow."""
    lines: list[Claim] = []
    for names, judge in (
        (("NOISE",), _noise_claims),
        (("SHUFFLED",), _shuffled_claims),
        (("EDGE56",), _edge56_claims),
        (("EDGE54",), _edge54_claims),
        (("FLIP", "FLIP_PLAIN"), _flip_claims),
        (("VANISH", "VANISH_PLAIN"), _vanish_claims),
        (("EDGE56", "EDGE58"), _false_loss_claims),
        (("DEMO",), lambda found: _demo_claims(found["DEMO"], "bars and chains")),
        (("DEMO_BARS",), lambda found: _demo_claims(found["DEMO_BARS"], "bars alone")),
        (("DEMO_CONTROL",), _control_claims),
    ):
        if all(name in found for name in names):
            lines += judge(found)
    return sorted(lines, key=lambda line: int(line.benchmark.removeprefix("B")))


def _noise_like(found: Found, name: str, benchmark: str, reference: str) -> list[Claim]:
    runs = found[name]
    proven = [run for run in runs if first_proof(run) is not None]
    honest = [run for run in runs if first_proof(run) is None]
    served, raw = mean_gain(runs, "served"), mean_gain(runs, "raw")
    proof = mean_gain(honest, "proof") if honest else float("nan")
    promotions = sum(run.promotions for run in honest)
    return [
        Claim(
            benchmark,
            f"{name.lower()}, {len(runs)} runs",
            f"{len(proven)} proven; shrunk {served:.1f}, behind proof {proof:.1f}, raw {raw:.1f}; "
            f"{promotions} promotions in unproven runs",
            "<= 1 proven; shrunk >= -3; behind proof >= -0.5; promotions 0",
            reference,
            len(proven) <= 1 and served >= -3 and proof >= -0.5 and promotions == 0,
        )
    ]


def _noise_claims(found: Found) -> list[Claim]:
    return _noise_like(found, "NOISE", "B3", "0 proven; shrunk -0.7, behind proof 0.0, raw -44")


def _shuffled_claims(found: Found) -> list[Claim]:
    return _noise_like(found, "SHUFFLED", "B13", "as B3")


def _edge_claim(
    found: Found,
    name: str,
    benchmark: str,
    by: int,
    least: int,
    skill: float,
    reference: str,
) -> list[Claim]:
    runs = found[name]
    proofs = [first_proof(run) for run in runs]
    in_time = sum(proof is not None and proof <= by for proof in proofs)
    served = mean_gain(runs, "served")
    return [
        Claim(
            benchmark,
            f"{name.removeprefix('EDGE')} %, {len(runs)} runs",
            f"proven {_sessions(proofs)}; shrunk {served:.1f} of {mean_gain(runs, 'oracle'):.1f}, "
            f"raw {mean_gain(runs, 'raw'):.1f}",
            f">= {least} by session {by}; shrunk >= {skill:g}",
            reference,
            in_time >= least and served >= skill,
        )
    ]


def _edge56_claims(found: Found) -> list[Claim]:
    return _edge_claim(found, "EDGE56", "B4", 40, 4, 40, "proven 12-30; shrunk 57 of 103, raw 50")


def _edge54_claims(found: Found) -> list[Claim]:
    return _edge_claim(found, "EDGE54", "B5", 75, 4, 8, "proven 22-96; shrunk 18 of 46, raw 2")


def _flip_claims(found: Found) -> list[Claim]:
    runs, plain = found["FLIP"], found["FLIP_PLAIN"]
    losses = [loss_after(run, CHANGE) for run in runs]
    early, late = (mean_gain(runs, "served", *x) for x in ((60, 80), (80, 120)))
    always = mean_gain(plain, "always replace", 60, 80)
    own, naive = crossing(runs), crossing(plain, "always replace")
    return [
        Claim(
            "B6",
            f"flip at {CHANGE}, {len(runs)} runs",
            f"LOST after {_sessions(losses)}; shrunk 60-79 {early:.1f} (always replace "
            f"{always:.1f}), 80-119 {late:.1f}; not negative after {own} ({naive})",
            "LOST <= 15 in 5 of 6; 60-79 at most half of always-replace's loss; 80-119 > 10; "
            "not negative after <= 16",
            "LOST 1-10; -24 (-109), +35; after 8 (14)",
            sum(x is not None and x <= 15 for x in losses) >= len(losses) - 1
            and early >= always / 2
            and late > 10
            and own is not None
            and own <= 16,
        )
    ]


def _vanish_claims(found: Found) -> list[Claim]:
    runs, plain = found["VANISH"], found["VANISH_PLAIN"]
    proven = [run for run in runs if any(x < CHANGE for x in run.sessions_of("skill_proven"))]
    losses = [loss_after(run, CHANGE) for run in proven]
    again = sum(any(x >= CHANGE for x in run.sessions_of("skill_proven")) for run in runs)
    served = mean_gain(runs, "served", 60, 120)
    return [
        Claim(
            "B7",
            f"vanish at {CHANGE}, {len(runs)} runs",
            f"LOST after {_sessions(losses)}; shrunk 60-119 {served:.1f} (always replace "
            f"{mean_gain(plain, 'always replace', 60, 120):.1f}); {again} proven again",
            "LOST <= 45 in all proven runs; shrunk >= -15; at most 1 proven again",
            "LOST 8-44; -6.5 (raw -64)",
            all(x is not None and x <= 45 for x in losses) and served >= -15 and again <= 1,
        )
    ]


def false_losses(runs: Sequence[Run]) -> tuple[int, int]:
    """Losses in a world that never changes, and the sessions that were folded while proven."""
    lost = sum(len(run.sessions_of("skill_lost")) for run in runs)
    proven = sum(state == "proven" for run in runs for state in run.skill)
    return lost, proven


def _false_loss_claims(found: Found) -> list[Claim]:
    runs = found["EDGE56"] + found["EDGE58"]
    lost, proven = false_losses(runs)
    rate = 100 * lost / max(1, proven)
    return [
        Claim(
            "B8",
            f"56 and 58 %, {len(runs)} runs",
            f"{lost} false LOST in {proven} proven sessions, {rate:.2f} per 100",
            "<= 1.5 per 100",
            "0.45 per 100",
            rate <= 1.5,
        )
    ]


def _demo_claims(runs: list[Run], what: str) -> list[Claim]:
    proofs = [first_proof(run) for run in runs]
    losses = [loss_after(run, CHANGE) for run in runs]
    again = [next((x for x in run.sessions_of("skill_proven") if x > CHANGE), None) for run in runs]
    return [
        Claim(
            "B9",
            f"demo SIMQ, {what}, {len(runs)} seeds",
            f"proven {_sessions(proofs)}; LOST after {_sessions(losses)}; again {_sessions(again)}",
            "all proven <= 35; LOST within 5; half proven again by 99",
            "proven 9-24; LOST after 1-3; 7 of 10 again by 96",
            all(x is not None and x <= 35 for x in proofs)
            and all(x is not None and x <= 6 for x in losses)
            and sum(x is not None for x in again) >= len(runs) / 2,
        )
    ]


def _control_claims(found: Found) -> list[Claim]:
    runs = found["DEMO_CONTROL"]
    proven = sum(first_proof(run) is not None for run in runs)
    return [
        Claim(
            "B9",
            f"demo SIMN, {len(runs)} seeds",
            f"{proven} proven, highest E {np.exp(max(run.evidence.max() for run in runs)):.1f}",
            "never proven",
            "never proven",
            proven == 0,
        )
    ]


def _sessions(found: Sequence[int | None]) -> str:
    known = sorted(x for x in found if x is not None)
    never = len(found) - len(known)
    return " ".join(map(str, known)) + (f" and never x{never}" if never else "")


# --- the gates side by side -----------------------------------------------------------------------

COLUMNS: tuple[tuple[str, str, int, int], ...] = (
    ("noise", "NOISE", LEARNED, SESSIONS),
    ("52 %", "EDGE52", LEARNED, SESSIONS),
    ("54 %", "EDGE54", LEARNED, SESSIONS),
    ("56 %", "EDGE56", LEARNED, SESSIONS),
    ("58 %", "EDGE58", LEARNED, SESSIONS),
    ("flip 60-79", "FLIP", 60, 80),
    ("flip 80-119", "FLIP", 80, SESSIONS),
    ("vanish 60-119", "VANISH", 60, SESSIONS),
)
ROWS = {
    "oracle": "oracle",
    "always replace": "always replace",
    "best accuracy so far": "best accuracy so far",
    "single paired test": "single paired test",
    "ours: newest, unshrunk": "raw",
    "ours: served (trusted)": "served",
    "ours: behind the proof": "proof",
}


def side_by_side(found: Found) -> dict[str, dict[str, float]]:
    """Skill by rule and world; the naive rules on the candidates of a loop that never forgets."""
    table: dict[str, dict[str, float]] = {}
    for words, what in ROWS.items():
        table[words] = {}
        for column, world, first, last in COLUMNS:
            source = f"{world}_PLAIN" if what in RULES and f"{world}_PLAIN" in found else world
            if source in found:
                table[words][column] = mean_gain(found[source], what, first, last)
    return table


def promotions_on_noise(found: Found) -> dict[str, dict[str, float]]:
    """By rule: promotions per run on noise, share of runs with one, and accuracy claimed."""
    runs = found["NOISE"]
    ours = [run.promotions for run in runs]
    table = {
        rule: {
            "per run": float(np.mean([run.naive[rule][1] for run in runs])),
            "runs with one": float(np.mean([run.naive[rule][1] > 0 for run in runs])),
            "claimed accuracy": float(np.mean([run.naive[rule][2] for run in runs])),
        }
        for rule in RULES
    }
    table["ours"] = {
        "per run": float(np.mean(ours)),
        "runs with one": float(np.mean([count > 0 for count in ours])),
        "claimed accuracy": float("nan"),
    }
    return table


# --- report ---------------------------------------------------------------------------------------


def markdown(lines: Sequence[Claim], found: Found) -> str:
    """The report as Markdown."""
    marks = {True: "yes", False: "**no**", None: ""}
    text = [
        "| # | case | measured | must reach | reference | reached |",
        "|---|---|---|---|---|---|",
    ]
    text += [
        f"| {line.benchmark} | {line.case} | {line.measured} | {line.must_reach} | "
        f"{line.reference} | {marks[line.reached]} |"
        for line in lines
    ]
    columns = [column for column, world, *_ in COLUMNS if world in found]
    text += ["", "| skill, 1e-4 nats per label | " + " | ".join(columns) + " |"]
    text += ["|---" * (len(columns) + 1) + "|"]
    for words, cells in side_by_side(found).items():
        text.append(f"| {words} | " + " | ".join(f"{cells[x]:.1f}" for x in columns) + " |")
    if "NOISE" in found:
        text += ["", "| on noise | promotions per run | runs with one | claimed accuracy |"]
        text += ["|---|---|---|---|"]
        for rule, cells in promotions_on_noise(found).items():
            claim = cells["claimed accuracy"]
            words = "-" if np.isnan(claim) else f"{claim:.3f}"
            text.append(
                f"| {rule} | {cells['per run']:.1f} | {cells['runs with one']:.2f} | {words} |"
            )
    return "\n".join(text) + "\n"


def draw(found: Found, out: Path) -> None:
    """Plots: skill by session around the flip, and the evidence of every run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    if {"FLIP", "FLIP_PLAIN"} <= set(found):
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        kernel = np.ones(5) / 5
        for words, what in ROWS.items():
            runs = found["FLIP_PLAIN" if what in RULES else "FLIP"]
            series = [mean_gain(runs, what, s, s + 1) for s in range(SESSIONS)]
            axes.plot(range(4, SESSIONS), np.convolve(series, kernel, mode="valid"), label=words)
        axes.axvline(CHANGE, color="grey", linestyle=":")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_ylim(-400, 200)
        axes.set_xlabel("session")
        axes.set_ylabel("skill, 1e-4 nats, mean of 5 sessions")
        axes.set_title("An edge of 56 % that turns into its opposite at session 60", loc="left")
        axes.legend(fontsize=8)
        figure.savefig(out / "flip.png", dpi=110)
    figure = Figure(figsize=(9, 5), layout="constrained")
    all_axes = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    for axes, name in zip(
        all_axes, ("NOISE", "EDGE52", "EDGE54", "EDGE56", "FLIP", "VANISH"), strict=True
    ):
        for run in found.get(name, []):
            axes.plot(run.evidence / np.log(10), linewidth=1)
        axes.axhline(np.log10(20), color="green", linestyle="--", linewidth=0.8)
        axes.set_title(name.lower(), loc="left", fontsize=9)
        axes.set_ylim(-3, 12)
    figure.suptitle("log10 of the evidence by session; proven above the line", x=0.01, ha="left")
    figure.savefig(out / "evidence.png", dpi=110)


def rule_claims(seed: int) -> list[Claim]:
    """B1, B2 and B11: the gate alone, without any model."""
    results = [
        *gate_power.measure_noise(seed, gate_power.NOISE_STREAMS),
        *gate_power.measure_edge(seed, gate_power.EDGE_STREAMS),
        gate_power.measure_latency(),
    ]
    references = {
        "B1": "2.0 / 1.7 / 1.7 % of 300",
        "B2": "54 % 15/30/47; 56 % 7/12/18; 58 % 4/6/10; 52 % 37 % ever",
        "B11": "0.35 ms",
    }
    return [
        Claim(
            result.benchmark.split()[0],
            result.case,
            result.measured,
            result.must_reach,
            references[result.benchmark.split()[0]],
            result.reached,
        )
        for result in results
    ]


def guard_claims(seed: int) -> list[Claim]:
    """B10: 100 candidates of each kind, half of them of noise."""
    symbols = tuple(f"{world}{run}" for world in ("NOISE", "EDGE56X") for run in range(5))
    found = guard_sabotage.count(seed, symbols, guard_sabotage.FIRST_WINDOW + 9)
    return [
        Claim(
            "B10",
            f"{made} {kind}",
            f"{refused} refused",
            "none refused" if kind == "honest" else "all refused",
            "0 of 100" if kind == "honest" else "-",
            refused == (0 if kind == "honest" else made),
        )
        for kind, (made, refused) in found.items()
    ]


def real_claims(path: str, symbols: str, folder: Path) -> list[Claim]:
    """B12: real bars must stay unproven; E >= 20 there means a leak until shown otherwise."""
    deployment = honest_table.replayed(path, symbols, folder)
    lines = []
    for symbol in deployment.symbols:
        entries = deployment.ledger(symbol).entries
        folds = entries[entries["kind"] == "fold"]
        highest = gate.evidence_number(float(folds["evidence"].max()))
        lines.append(
            Claim(
                "B12",
                f"{symbol}, {len(folds)} sessions",
                f"{folds['skill'].iloc[-1]}, highest E {highest:.2f}",
                "unproven, E < 20",
                "unproven, highest E 1.6",
                bool((folds["skill"] == "unproven").all()) and highest < 20,
            )
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the report, writes JSON, Markdown and plots."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/learning_worlds"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="comma-separated worlds; '' = only report what is there")
    parser.add_argument("--bars", help="real bars for B12")
    parser.add_argument("--symbols", default="QQQ,SPY", help="of the real bars")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = list(CAMPAIGN) if options.only is None else options.only.split(",")
    for name in filter(None, wanted):
        with tempfile.TemporaryDirectory() as folder:
            runs = measure(CAMPAIGN[name], options.seed, Path(folder))
        text = json.dumps([run.to_json() for run in runs])
        (options.out / f"{name}-{options.seed}.json").write_text(text)
        print(f"{name}: {len(runs)} runs measured", flush=True)
    found = {
        name: [Run.from_json(run) for run in json.loads(path.read_text())]
        for name in CAMPAIGN
        if (path := options.out / f"{name}-{options.seed}.json").exists()
    }
    lines = rule_claims(options.seed) + guard_claims(options.seed) + claims(found)
    if options.bars:
        with tempfile.TemporaryDirectory() as folder:
            lines += real_claims(options.bars, options.symbols, Path(folder))
    lines.sort(key=lambda line: int(line.benchmark.removeprefix("B")))
    report = markdown(lines, found)
    print(report)
    draw(found, options.out)
    (options.out / "report.md").write_text(report)
    record = {
        "seed": options.seed,
        "claims": [asdict(line) for line in lines],
        "skill": side_by_side(found),
    }
    (options.out / "report.json").write_text(json.dumps(record, indent=1) + "\n")
    return 1 if any(line.reached is False for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
