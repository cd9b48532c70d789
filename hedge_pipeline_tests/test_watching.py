"""`hedge watch`: what it shows is what the tables hold, and it writes nothing."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hedge_pipeline import cli
from hedge_pipeline.assets import pictures
from hedge_pipeline.live.supervision import Heartbeat
from hedge_pipeline.market.tables import HEDGE_LEVELS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.status import status
from hedge_pipeline.watching import look
from hedge_pipeline_tests.replays import (
    SYMBOLS,
    Demo,
    command,
    demo_in,
    environment,
    replay_in,
    rows_of,
)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)


def place(out: Path) -> dict[str, str]:
    return {"HEDGE_DATA_URL": str(out), "HEDGE_MODE": "replay"}


def invoke(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(cli.app, ["watch", *arguments], env=variables)


def files(folder: Path) -> dict[str, int]:
    return {str(x): x.stat().st_mtime_ns for x in folder.rglob("*") if x.is_file()}


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_price_probability_and_hit_rate_are_those_of_the_newest_session(
    demo: Demo, symbol: str
) -> None:
    found = look(replay_in(demo.out))
    part, label = found["symbols"][symbol], found["session"]
    assert label == demo.store.sessions(RAW_QUOTES)[-1]
    bars = rows_of(demo.store, RAW_QUOTES, [label], [symbol]).sort_values("bar_ts")
    log = rows_of(demo.store, PREDICTION_LOG, [label], [symbol]).query("role == 'served'")
    newest = log.sort_values("bar_ts").iloc[-1]
    assert part["price"] == bars["close"].iloc[-1]
    assert part["bar"] == bars["bar_ts"].iloc[-1].isoformat()
    assert part["probability"] == newest["prob_up"]
    assert part["model_version"] == newest["model_version"] == 3
    assert part["reason"] == newest["reason"]
    known = rows_of(demo.store, OUTCOMES, [label], [symbol]).dropna(subset=["actual_direction"])
    scored = log.dropna(subset=["prediction"]).merge(known, on="bar_ts")
    assert part["matured"] == len(scored) > 300
    hits = scored["prediction"] == scored["actual_direction"]
    assert part["hit_rate"] == pytest.approx(hits.mean())
    assert part["signals"] == log["signal_fired"].sum()


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_nearest_levels_lie_on_both_sides_of_the_price_with_none_between(
    demo: Demo, symbol: str
) -> None:
    found = look(replay_in(demo.out))
    part = found["symbols"][symbol]
    rows = rows_of(demo.store, HEDGE_LEVELS, [found["session"]], [symbol]).query("usable")
    newest = rows.sort_values("available_at").iloc[-1]
    names = [x for x in newest.index if x.startswith(("hp_", "mhp_", "hg_")) or x == "gamma_flip"]
    prices = newest[[x for x in names if not x.endswith(("_net", "_score"))]].dropna().astype(float)
    below, above = prices[prices <= part["price"]], prices[prices > part["price"]]
    assert part["below"]["price"] == below.max()
    assert part["above"]["price"] == above.min()
    assert part["below"]["distance_pct"] <= 0 < part["above"]["distance_pct"]


def test_a_stale_chain_has_no_levels_and_an_unusable_one_keeps_its_half_gaps(
    demo: Demo, tmp_path: Path
) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    label = demo.store.sessions(RAW_QUOTES)[-1]
    session = deployment.calendar.session(label)
    rows = rows_of(demo.store, HEDGE_LEVELS, [label], ["SIMQ"])
    early = rows[rows["available_at"] < session.opens + dt.timedelta(hours=1)].iloc[-1:]
    deployment.store.replace(HEDGE_LEVELS, label, early)
    part = look(deployment)["symbols"]["SIMQ"]
    sides = [part[side] for side in ("below", "above")]
    assert all(side is None or side["kind"] == "HG" for side in sides)
    late = rows.iloc[-1:].assign(hg_below=1.0, usable=False, unusable_reason="torn")
    deployment.store.replace(HEDGE_LEVELS, label, late)
    below = look(deployment)["symbols"]["SIMQ"]["below"]
    assert (below["price"], below["kind"]) == (1.0, "HG")


def test_outcomes_of_another_horizon_are_not_counted(demo: Demo, tmp_path: Path) -> None:
    """HEDGE_HORIZON_BARS was changed in the middle of a session."""
    before = replay_in(demo.out)
    after = replay_in(demo.copy(tmp_path / "out"))
    label = demo.store.sessions(RAW_QUOTES)[-1]
    rows = rows_of(demo.store, OUTCOMES, [label])
    after.store.append(OUTCOMES, label, rows.assign(horizon_bars=rows["horizon_bars"] + 5))
    assert len(rows_of(after.store, OUTCOMES, [label])) == 2 * len(rows)
    assert look(after)["symbols"] == look(before)["symbols"]
    assert status(after)["sessions"] == status(before)["sessions"]
    told, wanted = (pictures.outcomes(x, label, 0, draw=False) for x in (after, before))
    assert {**told, "bytes": 0} == {**wanted, "bytes": 0}


def test_a_session_that_runs_is_open_with_its_last_poll(demo: Demo, tmp_path: Path) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    session = deployment.calendar.session(demo.store.sessions(RAW_QUOTES)[-1])
    now = session.opens + dt.timedelta(hours=1)
    beat = Heartbeat("run", now.isoformat(), session.label)
    beat.write(deployment.store)
    live = replace(deployment, replay=False, clock=lambda: now)
    found = look(live)
    assert (found["open"], found["last_poll"]) == (True, now.isoformat())
    assert not look(replace(live, clock=lambda: session.closes))["open"]


def test_nothing_stored_is_nothing_known(tmp_path: Path) -> None:
    found = look(replay_in(tmp_path / "out"))
    part = found["symbols"]["SIMQ"]
    assert found["session"] is part["price"] is part["below"] is part["hit_rate"] is None
    assert (part["matured"], part["signals"]) == (0, 0)
    assert not (tmp_path / "out").exists()


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}], ids=["no terminal", "NO_COLOR"])
def test_one_look_is_a_plain_table_of_at_most_80_columns(
    demo: Demo, variables: dict[str, str]
) -> None:
    before = files(demo.out)
    result = invoke("--once", **place(demo.out), **variables)
    assert result.exit_code == 0, result.output
    found = look(replay_in(demo.out))
    for symbol, part in found["symbols"].items():
        assert symbol in result.stdout
        assert f"{part['price']:.2f}" in result.stdout
        assert f"{part['probability']:.3f}" in result.stdout
        assert f"{part['below']['price']:.2f}" in result.stdout
        assert f"of {part['matured']}" in result.stdout
    assert f"session {found['session']} is over" in result.stdout
    assert "\x1b" not in result.stdout
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80
    assert files(demo.out) == before


def test_one_look_in_json_is_one_line(demo: Demo) -> None:
    result = invoke("--once", "--json", **place(demo.out))
    (line,) = result.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found["symbols"] == look(replay_in(demo.out))["symbols"]


def test_one_look_at_nothing_says_the_next_step() -> None:
    result = invoke("--once", HEDGE_DATA_URL="data")
    assert result.exit_code == 0
    assert "start `hedge up`" in " ".join(result.stdout.split())


def test_an_unreadable_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = invoke("--once", HEDGE_DATA_URL="file/data")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the data folder file/data cannot be read")
    assert result.stderr.count("\n") == 1


def test_it_looks_again_and_again_until_it_is_interrupted(demo: Demo, tmp_path: Path) -> None:
    watching = subprocess.Popen(
        command("watch", "--json", "--interval", "0.5"),
        cwd=tmp_path,
        env=environment(**place(demo.out)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
        assert looks[0]["now"] < looks[2]["now"]
    finally:
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=30)
    assert (watching.returncode, said) == (0, "")


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}], ids=["colour", "NO_COLOR"])
def test_in_a_terminal_it_is_drawn_in_place_with_colour_unless_unwanted(
    demo: Demo, tmp_path: Path, variables: dict[str, str]
) -> None:
    ours, theirs = os.openpty()
    watching = subprocess.Popen(
        command("watch", "--interval", "0.5"),
        cwd=tmp_path,
        env=environment(**place(demo.out), TERM="xterm-256color", COLUMNS="80", **variables),
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    try:
        while shown.count(b"SIMQ") < 2:
            shown += os.read(ours, 65536)
    finally:
        watching.send_signal(signal.SIGINT)
        watching.wait(timeout=30)
        os.close(ours)
    assert watching.returncode == 0
    assert (b"\x1b[31m" in shown or b"\x1b[32m" in shown) is not bool(variables)
