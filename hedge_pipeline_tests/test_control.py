"""History, overrides and the proof that the evidence is what the log says."""

from __future__ import annotations

import datetime as dt
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from hedge_pipeline import cli, control, stages
from hedge_pipeline.market.tables import OUTCOMES, PREDICTION_LOG, PROMOTIONS
from hedge_pipeline.replay import MARKER
from hedge_pipeline.stages import Deployment, StageError
from hedge_pipeline_tests.replays import Demo, demo_in, environment, replay_in

NOW = dt.datetime(2024, 1, 13, 12, tzinfo=dt.UTC)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = environment()
    for name in list(os.environ):
        if name not in wanted:
            monkeypatch.delenv(name)


@pytest.fixture
def live(demo: Demo, tmp_path: Path) -> Deployment:
    """The demo's tables as those of a live loop, four versions accepted; not a replay any more."""
    out = demo.copy(tmp_path / "live")
    (out / MARKER).unlink()
    return replace(replay_in(out, ("SIMQ",)), replay=False, clock=lambda: NOW)


def invoke(out: Path, *arguments: str, mode: str = "live") -> Result:
    given = {"HEDGE_DATA_URL": str(out), "HEDGE_MODE": mode, "HEDGE_SYMBOLS": "SIMQ"}
    return CliRunner().invoke(cli.app, arguments, env=given)


# -- overrides -------------------------------------------------------------------------------------


def test_an_override_is_an_entry_of_its_own_and_leaves_the_evidence_alone(live: Deployment) -> None:
    before = live.ledger("SIMQ")
    assert before.accepted == (1, 2, 3, 4)
    entry = control.pin(live, "SIMQ", 2, " looks calmer ")
    after = live.ledger("SIMQ")
    assert after.pinned == 2
    assert after.state == before.state
    assert after.accepted == before.accepted
    assert after.champion == before.champion
    assert len(after.entries) == len(before.entries) + 1
    assert (entry["event"], entry["number"], entry["reason"]) == ("pin", 1, "looks calmer")
    assert PROMOTIONS.violations(live.store.read(PROMOTIONS)) == {}


def test_overrides_of_one_session_and_version_are_all_kept(live: Deployment) -> None:
    served = []
    for step in range(3):
        later = replace(
            live, clock=partial(dt.datetime.__add__, NOW, step * dt.timedelta(minutes=1))
        )
        control.pin(later, "SIMQ", 2, "again")
        served.append(later.ledger("SIMQ").pinned)
        control.roll_back(later, "SIMQ", "back")
        served.append(later.ledger("SIMQ").pinned)
    assert served == [2, None] * 3
    assert live.ledger("SIMQ").overrides == 6


def test_rolling_back_pins_the_version_before_the_newest_and_then_lets_it_go(
    live: Deployment,
) -> None:
    assert control.roll_back(live, "SIMQ", "worse than yesterday")["model_version"] == 3
    assert live.ledger("SIMQ").pinned == 3
    entry = control.roll_back(live, "SIMQ", "it was the feed")
    assert (entry["event"], entry["model_version"]) == ("unpin", 3)
    assert live.ledger("SIMQ").pinned is None


@pytest.mark.parametrize(
    ("version", "reason", "message"),
    [
        (9, "why", "version 9 is not accepted; accepted are 1, 2, 3, 4"),
        (2, "  ", "an override needs a reason"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(
    live: Deployment, version: int, reason: str, message: str
) -> None:
    with pytest.raises(StageError, match=message):
        control.pin(live, "SIMQ", version, reason)
    assert live.ledger("SIMQ").overrides == 0


def test_pinning_twice_is_refused(live: Deployment) -> None:
    control.pin(live, "SIMQ", 2, "once")
    with pytest.raises(StageError, match="version 2 is pinned already"):
        control.pin(live, "SIMQ", 2, "twice")


def test_a_replay_cannot_be_overruled(demo: Demo, tmp_path: Path) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    with pytest.raises(StageError, match="only a live loop can be overruled"):
        control.pin(deployment, "SIMQ", 2, "why")


# -- the proof -------------------------------------------------------------------------------------


def test_refolding_the_demo_gives_the_stored_state(demo: Demo) -> None:
    found = control.rebuild_evidence(replay_in(demo.out), "SIMQ")
    assert found.differs is None
    assert found.sessions == 8
    assert found.state == replay_in(demo.out).ledger("SIMQ").state


@pytest.mark.parametrize("table", [OUTCOMES, PREDICTION_LOG])
def test_a_row_changed_after_the_fold_is_found_in_its_session(
    demo: Demo, tmp_path: Path, table: Any
) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    label = deployment.store.sessions(table)[6]
    rows = deployment.store.read(table, [label])
    if table is OUTCOMES:
        changed = rows["actual_direction"].where(
            rows["symbol"] != "SIMQ", 1 - rows["actual_direction"]
        )
        rows["actual_direction"] = changed
    else:
        rows["margin"] = rows["margin"] * 0.5
    deployment.store.replace(table, label, rows)
    found = control.rebuild_evidence(replay_in(tmp_path / "out"), "SIMQ")
    assert found.differs == label
    said = invoke(tmp_path / "out", "rebuild-evidence", mode="replay")
    assert said.exit_code == 1
    assert f"the stored state of session {label} is not what" in said.stderr


def test_a_log_that_lost_its_folds_is_rebuilt_by_folding(demo: Demo, tmp_path: Path) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    state = deployment.ledger("SIMQ").state
    for label in deployment.store.sessions(PROMOTIONS):
        rows = deployment.store.read(PROMOTIONS, [label])
        deployment.store.replace(PROMOTIONS, label, rows[rows["kind"] != "fold"])
    again = replay_in(tmp_path / "out")
    assert again.ledger("SIMQ").state.last_session is None
    assert len(stages.fold_evidence(again, "SIMQ")) == 8
    assert again.ledger("SIMQ").state == state


def as_kept_by_offset(state: str) -> str:
    """The state as the rule wrote it that kept the wealth of each offset."""
    fields = json.loads(state)
    fields["log_wealth"] = [fields["log_wealth"]] * fields.pop("horizon")
    return json.dumps(fields)


def test_a_log_begun_under_the_earlier_rule_goes_on_and_is_refolded_from_there(
    demo: Demo, tmp_path: Path
) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    state = deployment.ledger("SIMQ").state
    for label in deployment.store.sessions(PROMOTIONS)[:3]:
        rows = deployment.store.read(PROMOTIONS, [label])
        deployment.store.replace(
            PROMOTIONS, label, rows.assign(state=rows["state"].map(as_kept_by_offset))
        )
    again = replay_in(tmp_path / "out")
    found = control.rebuild_evidence(again, "SIMQ")
    assert (found.differs, found.sessions, found.forgotten) == (None, 5, 3)
    assert found.state == state
    for label in deployment.store.sessions(PROMOTIONS)[3:]:
        again.store.drop(PROMOTIONS, label)
    begun = replay_in(tmp_path / "out")
    assert begun.ledger("SIMQ").state.log_evidence != state.log_evidence
    assert len(stages.fold_evidence(begun, "SIMQ")) == 5
    assert begun.ledger("SIMQ").state == state


def test_evidence_of_another_horizon_is_not_gone_on_with(demo: Demo, tmp_path: Path) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    before = deployment.store.read(PROMOTIONS)
    other = replace(deployment, horizon=5, rule=replace(deployment.rule, horizon=5))
    with pytest.raises(StageError, match="is of HEDGE_HORIZON_BARS=10, which is now 5: set it"):
        stages.fold_evidence(other, "SIMQ")
    assert deployment.store.read(PROMOTIONS).equals(before)


# -- on the command line ---------------------------------------------------------------------------


def test_history_tells_who_served_and_who_was_champion_and_why(live: Deployment) -> None:
    out = Path(live.store.url)
    assert invoke(out, "promote", "--version", "2", "--reason", "calmer").exit_code == 0
    assert invoke(out, "rollback", "--reason", "enough").exit_code == 0
    found = json.loads(invoke(out, "history", "--json").stdout)
    assert [row["event"] for row in found] == ["hold"] * 4 + ["pin", "unpin"]
    assert [row["served"] for row in found] == [1, 2, 3, 4, 2, 4]
    assert {row["champion"] for row in found} == {None}
    assert [row["reason"] for row in found[4:]] == ["calmer", "enough"]
    table = invoke(out, "history").stdout
    assert "pin" in table and "calmer" in table


def test_history_tells_when_there_was_a_champion_and_when_no_more(live: Deployment) -> None:
    """Proven after the sixth session, lost after the eighth; the models are those of the demo."""
    folds = live.store.sessions(PROMOTIONS)
    for label, event, skill in (
        (folds[5], "skill_proven", "proven"),
        (folds[6], None, "proven"),
        (folds[7], "skill_lost", "lost"),
    ):
        rows = live.store.read(PROMOTIONS, [label])
        fold = rows["kind"] == "fold"
        rows.loc[fold, "event"] = event
        rows.loc[~fold, "event"] = "promote" if skill == "proven" else "hold"
        live.store.replace(PROMOTIONS, label, rows.assign(skill=skill))
    said = json.loads(invoke(Path(live.store.url), "history", "--json").stdout)
    assert [(row["event"], row["champion"]) for row in said] == [
        ("hold", None),
        ("skill_proven", 1),
        ("promote", 2),
        ("promote", 3),
        ("skill_lost", None),
        ("hold", None),
    ]
    assert [row["served"] for row in said] == [1, 1, 2, 3, 3, 4]
    assert all(row["reason"] and row["decided_at"] for row in said)


def test_status_shows_the_pinned_version(live: Deployment) -> None:
    control.pin(live, "SIMQ", 2, "calmer")
    found = json.loads(invoke(Path(live.store.url), "status", "--json").stdout)
    assert found["symbols"]["SIMQ"]["pinned_version"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("promote", "--version", "9", "--reason", "x"), "version 9 is not accepted"),
        (("rollback", "--reason", ""), "an override needs a reason"),
        (("history", "--symbol", "QQQ"), "QQQ is not watched"),
    ],
)
def test_a_mistake_is_one_line(live: Deployment, arguments: tuple[str, ...], message: str) -> None:
    said = invoke(Path(live.store.url), *arguments)
    assert said.exit_code == 1
    assert said.stderr.startswith("error: ")
    assert message in said.stderr
    assert said.stderr.count("\n") == 1


def test_an_old_version_is_replayed_over_a_period_without_retraining(
    demo: Demo, tmp_path: Path
) -> None:
    arguments = (
        *("replay", "--out", str(tmp_path / "old"), "--source", "simulated", "--symbols", "SIMQ"),
        *("--from", "2024-01-10", "--to", "2024-01-16", "--model-version", "1"),
        *("--no-registry", "--json"),
    )
    said = invoke(demo.out, *arguments, mode="replay")
    assert said.exit_code == 0, said.stderr
    deployment = replay_in(tmp_path / "old", ("SIMQ",))
    assert deployment.shelf.versions("SIMQ") == (1,)
    log = deployment.store.read(PREDICTION_LOG)
    assert set(log["model_version"]) == {1}
    assert log["prob_up"].notna().all()
    # the demo asked version 1 as its baseline; the first replayed session knows no session before
    there = demo.store.read(PREDICTION_LOG, ["2024-01-11"], symbols=["SIMQ"])
    there = there[there["role"] == "baseline"].reset_index(drop=True)
    own = log[(log["role"] == "served") & log["bar_ts"].isin(there["bar_ts"])]
    assert len(there) == 390
    pd.testing.assert_series_equal(own["margin"].reset_index(drop=True), there["margin"])
    assert invoke(demo.out, *arguments, mode="replay").exit_code == 0
