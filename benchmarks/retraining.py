"""Retraining beside bare XGBoost on the same rows: wall time and peak memory by number of rows.

A store of minute bars' features and outcomes of the symbols watched, at most 31, is made first.
Then, each in a process of its own: bare XGBoost (`QuantileDMatrix` and `xgboost.train`) on arrays
that are in memory already; a script that reads the same files with pandas, joins them and fits the
rows; and a retraining of the pool as the product does it: rows read from the Parquet tables,
fitted, the file written, read back and guarded, described. The last must give the bytes of the
product's fit of the rows in memory, and where every row places the bins (up to `MANY_ROWS`) those
of bare XGBoost.

Times do not include imports; CPU time says more where others use the machine too. Memory is the
peak of the process (`VmHWM`), and beside it what came on top of the imports. Rows beyond half a
million lie on disk while they are fitted.

    python -m benchmarks.retraining --rows 10000,100000,1000000,5000000
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hedge_pipeline.learning.training import MANY_ROWS, TrainingPlan, fit, native_xgboost

if TYPE_CHECKING:
    import pandas as pd

    from hedge_pipeline.stages import Deployment
    from hedge_pipeline.store import Store

SYMBOLS = tuple(f"S{number:02d}" for number in range(31))
BARS = 390
KNOWN = 45
MEASURES = ("seconds", "cpu_seconds", "peak_mb", "above_imports_mb")
PLAN = TrainingPlan(window_sessions=10**6)


def main() -> None:
    """Makes the store and runs every measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", default="10000,100000,1000000,5000000")
    parser.add_argument("--folder", type=Path, help="keep the store here and use it again")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/retraining.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_child(given.folder, **json.loads(given.child))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        _report(folder, [int(x) for x in given.rows.split(",")], given.out)


def _report(folder: Path, sizes: Sequence[int], out: Path) -> None:
    from benchmarks.report import show

    found: dict[str, float] = {}
    everything = folder
    for rows in sorted(sizes, reverse=True):
        folder = everything / f"{_symbols(rows)}_symbols"
        folder.mkdir(exist_ok=True, parents=True)
        _fill(folder, rows)
        kept = _in_a_process(folder, what="keep", rows=rows)
        own = _in_a_process(folder, what="retrain", rows=rows)
        bare = _in_a_process(folder, what="bare", rows=rows)
        script = _in_a_process(folder, what="script", rows=rows)
        for path in folder.glob("*.npy"):
            path.unlink()
        same = [kept, bare] if kept["rows"] <= MANY_ROWS else [kept]
        if any(own["sha256"] != other["sha256"] for other in same):
            raise SystemExit(f"{rows} rows: the bytes of the two models differ")
        name = f"{int(kept['rows'])}_rows"
        for which, one in (("bare", bare), ("script", script), ("retrain", own)):
            for measure in MEASURES:
                found[f"{name}_{which}_{measure}"] = one[measure]
        for measure in MEASURES:
            if bare[measure] == 0:  # no more than the imports had taken for a moment
                continue
            found[f"{name}_{measure}_ratio"] = own[measure] / bare[measure]
            found[f"{name}_{measure}_ratio_to_script"] = own[measure] / script[measure]
        for stage, spent in own["stages"].items():
            found[f"{name}_retrain_{stage}_cpu_seconds"] = spent
    show("retraining beside bare XGBoost", found, out, digits=2)


def _in_a_process(folder: Path, **what: Any) -> dict[str, Any]:
    arguments = ["-m", "benchmarks.retraining", "--folder", str(folder), "--child"]
    done = subprocess.run(
        [sys.executable, *arguments, json.dumps(what)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# -- the three kinds of process --------------------------------------------------------------------


def _child(folder: Path, what: str, rows: int) -> dict[str, Any]:
    kinds = {"keep": _keep, "bare": _bare, "script": _script, "retrain": _retrain}
    return kinds[what](folder, rows)


def _keep(folder: Path, rows: int) -> dict[str, Any]:
    """Writes the rows of the training as plain arrays, for bare XGBoost, and fits them."""
    from hedge_pipeline import stages

    deployment = _deployment(folder, rows)
    data = stages.training_rows(deployment, _wanted(deployment, rows), PLAN, deployment.clock())
    arrays: dict[str, Any] = {
        "features": data.features,
        "labels": data.labels,
        "weights": data.weights,
        "base_margin": data.base_margin,
        "base_rate": np.array(data.base_rate),
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    (folder / "names.json").write_text(json.dumps(list(data.names)))
    in_memory = replace(data, features=np.load(folder / "features.npy"), spool=None)
    return {"rows": data.rows, "sha256": hashlib.sha256(fit(in_memory, PLAN)[0]).hexdigest()}


def _bare(folder: Path, rows: int) -> dict[str, Any]:
    """What XGBoost takes on its own."""
    xgboost = native_xgboost()
    before = _peak_mb()
    names = ("features", "labels", "weights", "base_margin", "base_rate")
    features, labels, weights, margin, rate = (np.load(folder / f"{name}.npy") for name in names)
    columns = json.loads((folder / "names.json").read_text())
    begun, used = time.perf_counter(), time.process_time()
    matrix = xgboost.QuantileDMatrix(
        features,
        labels,
        weight=weights,
        base_margin=margin,
        feature_names=columns,
        max_bin=PLAN.bins,
        nthread=1,
    )
    booster = xgboost.train(PLAN.xgboost_parameters(float(rate)), matrix, PLAN.trees)
    content = bytes(booster.save_raw("ubj"))
    return _measured(begun, used, before, hashlib.sha256(content).hexdigest())


def _script(folder: Path, rows: int) -> dict[str, Any]:
    """What a few lines take that read the same files and fit the same rows."""
    import pandas as pd

    from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, feature_names

    xgboost = native_xgboost()
    files = {
        table.name: [
            path
            for label in _wanted(_deployment(folder, rows), rows)
            for path in (folder / table.name / f"session={label}").glob("*.parquet")
        ]
        for table in (FEATURE_ROWS, OUTCOMES)
    }
    pd.read_parquet(files[OUTCOMES.name][0])  # imports
    before = _peak_mb()
    begun, used = time.perf_counter(), time.process_time()
    features, outcomes = (pd.concat(map(pd.read_parquet, paths)) for paths in files.values())
    known = outcomes.loc[outcomes["actual_direction"].notna(), ["symbol", "bar_ts", "status"]]
    joined = features.merge(known, on=["symbol", "bar_ts"])
    names = list(feature_names())
    matrix = xgboost.QuantileDMatrix(
        joined[names].to_numpy(dtype=np.float32),
        joined["status"] == "up",
        feature_names=names,
        max_bin=PLAN.bins,
        nthread=1,
    )
    booster = xgboost.train(PLAN.xgboost_parameters(0.5), matrix, PLAN.trees)
    content = bytes(booster.save_raw("ubj"))
    return _measured(begun, used, before, hashlib.sha256(content).hexdigest())


def _retrain(folder: Path, rows: int) -> dict[str, Any]:
    """What the product takes."""
    import pandas as pd  # noqa: F401

    from hedge_pipeline import stages
    from hedge_pipeline.learning import training

    native_xgboost()
    deployment = _deployment(folder, rows)
    wanted = _wanted(deployment, rows)
    spent: dict[str, float] = {}
    fit = training.fit

    def timed(*given: Any) -> Any:
        begun = time.process_time()
        try:
            return fit(*given)
        finally:
            spent["fit"] = time.process_time() - begun

    deployment = replace(deployment, trainer=timed)
    before = _peak_mb()
    begun, used = time.perf_counter(), time.process_time()
    card = stages.train_on(deployment, SYMBOLS[0], wanted, None).card
    return _measured(begun, used, before, card.sha256) | {"stages": spent}


def _measured(begun: float, used: float, before: float, digest: str) -> dict[str, Any]:
    peak = _peak_mb()
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - used,
        "peak_mb": peak,
        "above_imports_mb": peak - before,
        "sha256": digest,
    }


def _peak_mb() -> float:
    # `ru_maxrss` would count what the parent process had when it started this one
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) / 1024


# -- the store -------------------------------------------------------------------------------------


def _deployment(folder: Path, rows: int) -> Deployment:
    """A pooled deployment that has no model yet."""
    import shutil

    from hedge_pipeline.learning.gate import GateRule
    from hedge_pipeline.market.calendar import SessionCalendar
    from hedge_pipeline.stages import Deployment
    from hedge_pipeline.store import Store

    def nothing() -> Any:
        raise AssertionError("a retraining asks no source")

    shutil.rmtree(folder / "models", ignore_errors=True)
    return Deployment(
        store=Store(str(folder)),
        calendar=SessionCalendar("XNYS", start=dt.date(2018, 1, 2)),
        symbols=SYMBOLS[: _symbols(rows)],
        open_source=nothing,
        rule=GateRule(),
        plan=PLAN,
        pooled=True,
    )


def _symbols(rows: int) -> int:
    """So many symbols that there are sessions enough for a training."""
    return min(len(SYMBOLS), max(2, rows // (PLAN.least_sessions * BARS)))


def _wanted(deployment: Deployment, rows: int) -> Mapping[str, Sequence[str]]:
    sessions = max(PLAN.least_sessions, round(rows / BARS / len(deployment.symbols)))
    return dict.fromkeys(deployment.calendar.labels[:sessions], deployment.symbols)


def _fill(folder: Path, rows: int) -> None:
    """Features and outcomes of as many whole sessions as the rows need, unless they are there."""
    from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES

    deployment = _deployment(folder, rows)
    store: Store = deployment.store
    for number, label in enumerate(_wanted(deployment, rows)):
        if label in store.sessions(OUTCOMES):
            continue
        rng = np.random.default_rng(number)
        store.replace(FEATURE_ROWS, label, _features(deployment, label, rng))
        store.replace(OUTCOMES, label, _outcomes(deployment, label, rng))


def _keys(deployment: Deployment, label: str, minutes: int) -> pd.DataFrame:
    import pandas as pd

    session = deployment.calendar.session(label)
    times = pd.DatetimeIndex(session.bar_ts).tz_localize("UTC")
    times = times[: min(BARS, len(times))]
    symbols = deployment.symbols
    return pd.DataFrame(
        {
            "symbol": np.repeat(symbols, len(times)),
            "bar_ts": np.tile(times, len(symbols)),
            "available_at": np.tile(times + dt.timedelta(minutes=minutes), len(symbols)),
        }
    )


def _features(deployment: Deployment, label: str, rng: np.random.Generator) -> pd.DataFrame:
    """Normal values, 45 features known; the others are unknown, as without option chains."""
    import pandas as pd

    from hedge_pipeline.market.features import FEATURES

    keys = _keys(deployment, label, 1)
    values = rng.standard_normal((len(keys), len(FEATURES)), dtype=np.float32)
    values[:, KNOWN:] = np.nan
    names = [feature.name for feature in FEATURES]
    return pd.concat([keys, pd.DataFrame(values, columns=names)], axis=1)


def _outcomes(deployment: Deployment, label: str, rng: np.random.Generator) -> pd.DataFrame:
    import pandas as pd

    keys = _keys(deployment, label, deployment.horizon + 1)
    up = rng.integers(0, 2, len(keys))
    return keys.assign(
        horizon_bars=deployment.horizon,
        entry_price=100.0,
        exit_price=100.0,
        return_pct=0.0,
        actual_direction=pd.array(up, dtype="Int8"),
        status=np.where(up, "up", "down"),
        reason=None,
    )


if __name__ == "__main__":
    main()
