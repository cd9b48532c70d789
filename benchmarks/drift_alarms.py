"""How often drift is called on markets that do not change, and how soon on those that do.

Feature drift: worlds whose features are stationary, and the same with trading volume that becomes
four times as irregular from a session on. Performance drift: the served streams that
`learning_worlds` has measured, stationary ones and the flip. Beside both stand the detector that
always fires and the one that never does.

    python -m benchmarks.drift_alarms --worlds benchmarks/out/learning_worlds
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.guard_sabotage import world_in
from benchmarks.learning_worlds import Run
from benchmarks.worlds import CHANGE
from hedge_pipeline.learning import drift
from hedge_pipeline.learning.drift import Drift
from hedge_pipeline.market.tables import FEATURE_ROWS, feature_names

Floats = npt.NDArray[np.float64]
Detector = Callable[[Floats], Drift]

FIRST_LOOK = 31
WARM_UP = 6
DETECTORS = ("ours", "always fires", "never fires")


@dataclass(frozen=True)
class Alarms:
    """What one detector did in one kind of world.

    Attributes:
        false_per_100: alarms per 100 looks at sessions before any change.
        delays: sessions from the change to the first alarm after it, by run; None = never.
    """

    case: str
    detector: str
    looks: int
    false_per_100: float
    delays: list[int | None]


def alarms(history: Floats, detect: Detector) -> npt.NDArray[np.bool_]:
    """Whether each look from `FIRST_LOOK` sessions on is an alarm."""
    return np.array([detect(history[:last]).alarm for last in range(FIRST_LOOK, len(history) + 1)])


def measure(
    case: str, histories: Sequence[Floats], detect: Detector, change: int | None
) -> list[Alarms]:
    """Our detector and both dummies on several runs; `change` counts from the first session."""
    ours = [alarms(history, detect) for history in histories]
    looks = [len(found) if change is None else max(0, change - FIRST_LOOK + 1) for found in ours]
    told = {
        "ours": ours,
        "always fires": [np.ones_like(found) for found in ours],
        "never fires": [np.zeros_like(found) for found in ours],
    }
    rows = []
    for name in DETECTORS:
        before = np.concatenate([x[:n] for x, n in zip(told[name], looks, strict=True)])
        delays: list[int | None] = []
        if change is not None:
            for found, quiet in zip(told[name], looks, strict=True):
                fired = np.flatnonzero(found[quiet:])
                delays.append(int(fired[0]) + 1 if len(fired) else None)
        rows.append(Alarms(case, name, len(before), 100 * float(before.mean()), delays))
    return rows


def feature_histories(seed: int, sessions: int, change: int | None) -> list[Floats]:
    """Session summaries of four worlds; from `change` on volume is four times as irregular."""
    names = list(feature_names())
    volume = [place for place, name in enumerate(names) if name.startswith("volume_1_")]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        deployment = world_in(
            Path(folder), ("NOISE0", "NOISE1", "EDGE56X0", "EDGE56X1"), sessions, seed
        )
        for symbol in deployment.symbols:
            history = []
            for place, label in enumerate(deployment.calendar.labels[:sessions]):
                rows = deployment.store.read(FEATURE_ROWS, [label], symbols=[symbol])
                values = rows[names].to_numpy(dtype=np.float32, copy=True)
                if change is not None and place >= change:
                    values[:, volume] *= 4
                history.append(drift.session_summary(values))
            found.append(np.array(history))
    return found


def skill_histories(runs: Sequence[Run]) -> list[Floats]:
    """Skill of the served probability by session, from the first prediction on."""
    return [((run.served - run.base) / run.labels)[WARM_UP:] for run in runs]


def main() -> int:
    """Runs the benchmark; exit status 1 when stationary worlds bring more than 2 alarms per 100."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--worlds", type=Path, default=Path("benchmarks/out/learning_worlds"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=90)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/drift_alarms.json"))
    options = parser.parse_args()

    def by_feature(history: Floats) -> Drift:
        return drift.feature_drift(history, feature_names())

    found: list[Alarms] = []
    for case, change in (("stationary features", None), ("irregular volume", 60)):
        histories = feature_histories(options.seed, options.sessions, change)
        found += measure(case, histories, by_feature, change)
    for name in ("NOISE", "EDGE54", "EDGE56", "EDGE58", "FLIP", "VANISH"):
        path = options.worlds / f"{name}-{options.seed}.json"
        if path.exists():
            runs = [Run.from_json(run) for run in json.loads(path.read_text())]
            changed = CHANGE - WARM_UP if name in ("FLIP", "VANISH") else None
            skill = skill_histories(runs)
            found += measure(f"skill, {name.lower()}", skill, drift.performance_drift, changed)
    print("| case | detector | looks before a change | false alarms per 100 | sessions to alarm |")
    print("|---|---|---|---|---|")
    for row in found:
        delays = " ".join("never" if x is None else str(x) for x in row.delays) or "-"
        print(f"| {row.case} | {row.detector} | {row.looks} | {row.false_per_100:.2f} | {delays} |")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    quiet = [row for row in found if row.detector == "ours" and not row.delays]
    return 1 if any(row.false_per_100 > 2 for row in quiet) else 0


if __name__ == "__main__":
    raise SystemExit(main())
