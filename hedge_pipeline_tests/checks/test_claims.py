"""Each claim holds on what the loop wrote, counts exactly the rows that break it, and blocks."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hedge_pipeline.checks import claims
from hedge_pipeline.learning.novelty import UNLIKE
from hedge_pipeline.market.sources.simulated import SimulatedSource
from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    FEATURE_ROWS,
    GAPS,
    HEDGE_LEVELS,
    OPTION_CHAINS,
    OUTCOMES,
    PREDICTION_LOG,
    RAW_QUOTES,
    Table,
)
from hedge_pipeline.opening import open_deployment, retrain
from hedge_pipeline.replay import replay
from hedge_pipeline.settings import load_settings
from hedge_pipeline.stages import Deployment, StageError
from hedge_pipeline_tests.runs import (
    SESSION_ASSETS,
    SESSIONS,
    failures,
    materialize,
    shown,
    verdicts,
)

LABEL = SESSIONS[5]  # the first session a model predicted
Claim = Callable[[Deployment, str], int]
Change = Callable[[pd.DataFrame], pd.DataFrame]

# check -> its asset and what counts its rows
CLAIMS: dict[str, tuple[str, Claim]] = {
    "quotes_keep_their_schema": ("raw_quotes", claims.misshapen_quotes),
    "quotes_cover_the_session": ("raw_quotes", claims.uncovered_minutes),
    "quotes_are_plausible": ("raw_quotes", claims.implausible_bars),
    "chains_keep_their_schema": ("option_chains", claims.misshapen_chains),
    "chains_are_not_known_before_their_time": ("option_chains", claims.hasty_snapshots),
    "levels_keep_their_schema": ("hedge_levels", claims.misshapen_levels),
    "levels_say_why_they_are_missing": ("hedge_levels", claims.unexplained_levels),
    "levels_lie_on_their_side_of_the_price": ("hedge_levels", claims.misplaced_levels),
    "features_keep_their_schema": ("features", claims.misshapen_features),
    "features_have_no_future_rows": ("features", claims.rows_from_the_future),
    "features_exist_for_every_bar": ("features", claims.bars_without_features),
    "predictions_keep_their_schema": ("prediction_log", claims.misshapen_predictions),
    "predictions_are_made_once": ("prediction_log", claims.doubled_predictions),
    "predictions_name_a_registered_model": ("prediction_log", claims.unknown_models),
    "predictions_wait_for_their_bar": ("prediction_log", claims.hasty_decisions),
    "outcomes_keep_their_schema": ("outcomes", claims.misshapen_outcomes),
    "outcomes_come_from_observed_prices": ("outcomes", claims.invented_outcomes),
}
EACH_CLAIM = pytest.mark.parametrize("claim", CLAIMS)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six replayed sessions; the last one was predicted by a first model."""
    folder = tmp_path_factory.mktemp("claims") / "data"
    with pytest.MonkeyPatch.context() as patch:
        point_to(patch, folder)
        replay(open_deployment(load_settings()), SESSIONS[:6])
    return folder


@pytest.fixture
def deployment(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The filled store in a folder of the test's own, where the resources look."""
    shutil.copytree(filled, tmp_path / "data")
    point_to(monkeypatch, tmp_path / "data")
    return open_deployment(load_settings())


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def point_to(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in ("HEDGE_SOURCE", "HEDGE_SYMBOLS", "MLFLOW_TRACKING_URI"):
        patch.delenv(name, raising=False)
    patch.setenv("HEDGE_DATA_URL", str(folder))
    patch.setenv("HEDGE_MODE", "replay")


# -- breaking a table --------------------------------------------------------------------------


@dataclass(frozen=True)
class Break:
    """A change of one stored table of the session, made behind the store's back."""

    table: Table
    change: Change

    def apply(self, deployment: Deployment) -> None:
        rows = deployment.store.read(self.table, [LABEL])
        folder = Path(deployment.store.url) / self.table.name / f"session={LABEL}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        changed = self.change(rows.copy())
        arrow = pa.Table.from_pandas(changed, schema=self.table.arrow, preserve_index=False)
        pq.write_table(arrow, folder / "session.parquet")


def put(column: str, value: Any, rows: Sequence[int] = (0,)) -> Change:
    """The column holds the value in these rows; a function is given the row."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        for row in rows:
            frame.loc[row, column] = value(frame.loc[row]) if callable(value) else value
        return frame

    return change


def drop(*rows: int) -> Change:
    return lambda frame: frame.drop(index=list(rows))


def drop_symbol(symbol: str) -> Change:
    return lambda frame: frame[frame["symbol"] != symbol]


def again(**values: Any) -> Change:
    """The first row once more at the end, with other values."""
    return lambda frame: pd.concat([frame, frame.iloc[:1].assign(**values)], ignore_index=True)


def gap_beside_a_bar(_: pd.DataFrame) -> pd.DataFrame:
    opening = pd.Timestamp(f"{LABEL}T14:30Z")
    rows = {"symbol": ["SIMQ"], "bar_ts": [opening], "cause": ["vendor_hole"], "detail": [None]}
    return GAPS.conform(pd.DataFrame(rows))


def gap_without_a_cause(frame: pd.DataFrame) -> pd.DataFrame:
    return gap_beside_a_bar(frame).assign(cause="bad luck")


def swap_direction(frame: pd.DataFrame) -> pd.DataFrame:
    frame["actual_direction"] = 1 - frame["actual_direction"]
    return frame


SECOND = dt.timedelta(seconds=1)
BREAKS = [
    ("quotes_keep_their_schema", RAW_QUOTES, put("close", 0.0), 1),
    ("quotes_keep_their_schema", RAW_QUOTES, put("close", 0.0, (3, 4)), 2),
    ("quotes_keep_their_schema", RAW_QUOTES, put("volume", -1.0), 1),
    ("quotes_keep_their_schema", RAW_QUOTES, again(), 1),
    ("quotes_keep_their_schema", GAPS, gap_without_a_cause, 1),
    ("quotes_cover_the_session", RAW_QUOTES, drop(7), 1),
    ("quotes_cover_the_session", RAW_QUOTES, drop(0, 389, 390, 779), 4),
    ("quotes_cover_the_session", RAW_QUOTES, drop_symbol("SIMN"), 390),
    ("quotes_cover_the_session", RAW_QUOTES, put("symbol", "SIMX"), 1),
    ("quotes_cover_the_session", GAPS, gap_beside_a_bar, 1),
    ("quotes_are_plausible", RAW_QUOTES, put("high", lambda row: row["close"] - 0.01), 1),
    ("quotes_are_plausible", RAW_QUOTES, put("low", lambda row: row["open"] + 0.01, (1, 2)), 2),
    ("quotes_are_plausible", RAW_QUOTES, put("bar_ts", lambda row: row["bar_ts"] - SECOND), 1),
    (
        "quotes_are_plausible",
        RAW_QUOTES,
        put("bar_ts", lambda row: row["bar_ts"] + dt.timedelta(hours=6.5)),
        1,
    ),
    ("features_keep_their_schema", FEATURE_ROWS, again(), 1),
    (
        "features_have_no_future_rows",
        FEATURE_ROWS,
        put("available_at", lambda row: row["available_at"] - SECOND, (5, 6, 7)),
        3,
    ),
    ("features_have_no_future_rows", RAW_QUOTES, drop(11), 1),
    ("chains_keep_their_schema", OPTION_CHAINS, put("right", "X", (0, 3)), 2),
    ("chains_keep_their_schema", CHAIN_FETCHES, put("status", "odd"), 1),
    (
        "chains_are_not_known_before_their_time",
        OPTION_CHAINS,
        put("available_at", lambda row: row["as_of"] - SECOND, (0, 7)),
        2,
    ),
    ("levels_keep_their_schema", HEDGE_LEVELS, put("gex_rank", 1.5), 1),
    ("levels_say_why_they_are_missing", HEDGE_LEVELS, put("usable", False, (3,)), 1),
    ("levels_lie_on_their_side_of_the_price", HEDGE_LEVELS, put("hp_support", 1e6, (2,)), 1),
    ("levels_lie_on_their_side_of_the_price", HEDGE_LEVELS, put("hg_above", 1.0, (2,)), 1),
    ("features_exist_for_every_bar", FEATURE_ROWS, drop(0, 1, 500), 3),
    ("predictions_keep_their_schema", PREDICTION_LOG, put("prob_up", 1.5), 1),
    ("predictions_keep_their_schema", PREDICTION_LOG, put("mode", "guess", (0, 9)), 2),
    ("predictions_keep_their_schema", PREDICTION_LOG, put("margin", 1.01), 1),
    ("predictions_keep_their_schema", PREDICTION_LOG, again(), 1),
    ("predictions_are_made_once", PREDICTION_LOG, again(role="served", model_version=2), 1),
    ("predictions_name_a_registered_model", PREDICTION_LOG, put("model_version", 99, (0, 2)), 2),
    ("predictions_name_a_registered_model", PREDICTION_LOG, put("model_version", 0), 1),
    (
        "predictions_wait_for_their_bar",
        PREDICTION_LOG,
        put("decided_at", lambda row: row["bar_ts"] + dt.timedelta(seconds=59)),
        1,
    ),
    ("outcomes_keep_their_schema", OUTCOMES, put("status", "sideways"), 1),
    ("outcomes_keep_their_schema", OUTCOMES, put("reason", "bored", (0, 1)), 2),
    ("outcomes_keep_their_schema", OUTCOMES, again(), 1),
    ("outcomes_come_from_observed_prices", OUTCOMES, put("exit_price", 1.0), 1),
    ("outcomes_come_from_observed_prices", OUTCOMES, put("entry_price", 1.0, (0, 1)), 2),
    ("outcomes_come_from_observed_prices", OUTCOMES, put("return_pct", 5.0), 1),
    ("outcomes_come_from_observed_prices", OUTCOMES, put("status", "flat"), 1),
    # the last bars of the session have no outcome; here one is invented
    ("outcomes_come_from_observed_prices", OUTCOMES, put("exit_price", 1.0, (385,)), 1),
    # a bar that was never seen: its own outcome, and that of the bar whose exit it was
    ("outcomes_come_from_observed_prices", RAW_QUOTES, drop(100), 2),
]


@EACH_CLAIM
def test_a_claim_holds_on_what_the_loop_wrote(deployment: Deployment, claim: str) -> None:
    assert CLAIMS[claim][1](deployment, LABEL) == 0


@pytest.mark.parametrize(
    ("claim", "broken", "count"),
    [pytest.param(c, Break(t, f), n, id=f"{c}-{i}") for i, (c, t, f, n) in enumerate(BREAKS)],
)
def test_a_claim_counts_exactly_the_broken_rows(
    deployment: Deployment, claim: str, broken: Break, count: int
) -> None:
    broken.apply(deployment)
    assert CLAIMS[claim][1](deployment, LABEL) == count


def test_every_claim_is_broken_by_some_row() -> None:
    assert {claim for claim, _, _, _ in BREAKS} == set(CLAIMS)


def test_a_direction_against_its_prices_is_invented(deployment: Deployment) -> None:
    known = int(deployment.store.read(OUTCOMES, [LABEL])["actual_direction"].notna().sum())
    Break(OUTCOMES, swap_direction).apply(deployment)
    assert claims.invented_outcomes(deployment, LABEL) == known > 700


def test_an_abstention_needs_no_model(deployment: Deployment) -> None:
    log = deployment.store.read(PREDICTION_LOG, [SESSIONS[0]])
    assert log["prediction"].isna().all()
    assert claims.unknown_models(deployment, SESSIONS[0]) == 0


def test_minutes_a_slow_source_may_still_deliver_are_not_missed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay asks a quarter of an hour after the close; this source needs 20 minutes."""
    Break(RAW_QUOTES, drop(*range(383, 390))).apply(deployment)
    assert claims.uncovered_minutes(deployment, LABEL) == 7
    monkeypatch.setattr(SimulatedSource, "delay", dt.timedelta(minutes=20))
    assert claims.uncovered_minutes(deployment, LABEL) == 0


def estranged(number: int) -> Change:
    """The first served predictions abstained as unlike the training data."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        rows = frame.index[frame["role"] == "served"][:number]
        frame.loc[rows, "reason"] = f"{UNLIKE}: volume_1_30 4.20"
        return frame

    return change


def test_the_share_of_strange_bars_is_of_those_a_model_was_asked_for(
    deployment: Deployment,
) -> None:
    assert claims.novel_share(deployment, LABEL) == 0.0
    Break(PREDICTION_LOG, estranged(78)).apply(deployment)
    assert claims.novel_share(deployment, LABEL) == pytest.approx(0.1)
    Break(PREDICTION_LOG, put("model_version", 0, range(1560))).apply(deployment)
    assert claims.novel_share(deployment, LABEL) == 0.0


# -- in real runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("asset", SESSION_ASSETS)
def test_a_check_counts_with_its_own_claim_and_names_the_session(
    deployment: Deployment,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    asset: str,
) -> None:
    own = [name for name, (owner, _) in CLAIMS.items() if owner == asset]
    for number, (_, function) in enumerate(CLAIMS.values(), start=1):
        monkeypatch.setattr(claims, function.__name__, lambda *_, number=number: number)
    result = materialize(instance, [asset], LABEL)
    found = {name: said for name, said in verdicts(result).items() if name in CLAIMS}
    assert set(found) == set(own)
    expected = {name: n for n, name in enumerate(CLAIMS, start=1) if name in own}
    assert {name: found[name].metadata["offending_rows"].value for name in own} == expected
    assert {name: found[name].description for name in own} == {
        name: f"{LABEL}: {count} rows" for name, count in expected.items()
    }
    assert not any(check.passed for check in found.values())


def test_every_claim_passes_in_a_run_over_what_the_loop_wrote(
    deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    result = materialize(instance, SESSION_ASSETS, LABEL)
    assert result.success
    found = verdicts(result)
    assert set(found) >= set(CLAIMS)
    assert all(check.passed for check in found.values())


@pytest.mark.parametrize(
    ("claim", "broken", "stopped"),
    [
        (
            "quotes_are_plausible",
            Break(RAW_QUOTES, put("high", 0.01)),
            {"hedge_levels", "features", "prediction_log", "outcomes"},
        ),
        (
            "predictions_name_a_registered_model",
            Break(PREDICTION_LOG, put("model_version", 99)),
            {"outcomes"},
        ),
    ],
)
def test_a_broken_claim_blocks_what_comes_after(
    deployment: Deployment,
    instance: dg.DagsterInstance,
    claim: str,
    broken: Break,
    stopped: set[str],
) -> None:
    broken.apply(deployment)
    result = materialize(instance, SESSION_ASSETS, LABEL)
    assert not result.success
    check = verdicts(result)[claim]
    assert (check.passed, check.blocking) == (False, True)
    assert check.description == f"{LABEL}: 1 rows"
    made = {
        event.asset_key.to_user_string()
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }
    assert made == set(SESSION_ASSETS) - stopped
    assert len(failures(result)) == 1


def test_a_check_over_a_range_names_only_the_broken_session(
    deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    Break(RAW_QUOTES, put("high", 0.01, (0, 1))).apply(deployment)
    result = materialize(instance, ["raw_quotes"], (SESSIONS[4], SESSIONS[5]))
    check = verdicts(result)["quotes_are_plausible"]
    assert check.description == f"{LABEL}: 2 rows"
    assert check.metadata["sessions"].value == 2


@pytest.mark.parametrize(("number", "description"), [(78, None), (79, f"{LABEL}: 10%")])
def test_many_strange_bars_are_a_warning_that_stops_nothing(
    deployment: Deployment, instance: dg.DagsterInstance, number: int, description: str | None
) -> None:
    Break(PREDICTION_LOG, estranged(number)).apply(deployment)
    result = materialize(instance, SESSION_ASSETS, LABEL)
    assert result.success
    check = verdicts(result)["most_bars_are_like_the_training_data"]
    assert (check.passed, check.blocking) == (description is None, False)
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert check.description == description
    assert check.metadata["highest_share_pct"].value == pytest.approx(number / 7.8, abs=0.01)


def test_a_feature_from_the_future_is_named_and_nothing_is_promoted(
    deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    """Planted in one column: what the outcome of the bar will be, with noise."""
    store = deployment.store
    for label in store.sessions(OUTCOMES):
        rows = store.read(FEATURE_ROWS, [label])
        told = store.read(OUTCOMES, [label])[["symbol", "bar_ts", "actual_direction"]]
        known = rows[["symbol", "bar_ts"]].merge(told, how="left")["actual_direction"]
        noise = np.random.default_rng(1).normal(0, 0.2, len(rows))
        planted = known.astype("float64").to_numpy() + noise
        rows["return_10"] = np.where(known.isna(), noise, planted).astype(np.float32)
        store.replace(FEATURE_ROWS, label, rows)
    result = materialize(instance, ["trained_model", "champion_model"], "SIMQ")
    check = verdicts(result)["no_feature_knows_the_outcome"]
    assert not check.passed
    said = str(check.description)
    assert said.startswith("SIMQ: return_10 alone is right with an area under the curve of 1.00")
    assert ";" not in said
    assert not result.success
    assert "champion_model" not in {asset for asset, _ in shown(result)}
    with pytest.raises(StageError, match=r"version 3 gets no verdict: SIMQ: return_10 alone"):
        retrain(load_settings(), "SIMQ", min_samples=0)
    verdicts_given = deployment.ledger("SIMQ").judged
    assert 3 not in verdicts_given
