"""Settings turned into a deployment: which calendar a simulated market is on."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from hedge_pipeline import stages
from hedge_pipeline.opening import ALWAYS_OPEN, live_settings, open_deployment, retrain
from hedge_pipeline.replay import MARKER
from hedge_pipeline.resources import loop
from hedge_pipeline.settings import Settings, load_settings


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settings of a store in the test's folder, with nothing from the environment."""
    monkeypatch.chdir(tmp_path)
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.alias), raising=False)

    def settings(**variables: str) -> Settings:
        return load_settings(HEDGE_DATA_URL=str(tmp_path / "data"), **variables)

    return settings


def fill(settings: Settings, label: str) -> None:
    """A session of the settings' calendar, stored after its end."""
    deployment = open_deployment(settings)
    closes = deployment.calendar.session(label).closes
    stages.collect(replace(deployment, clock=lambda: closes), label)


def test_a_simulated_market_is_always_open(given: Any) -> None:
    assert live_settings(given()).calendar == ALWAYS_OPEN
    assert live_settings(given(HEDGE_SOURCE="simulated")).calendar == ALWAYS_OPEN


@pytest.mark.parametrize(
    "variables",
    [
        {"HEDGE_CALENDAR": "XNYS"},
        {"HEDGE_CALENDAR": "XTKS"},
        {"HEDGE_SOURCE": "yahoo"},
        {"HEDGE_SOURCE": "file"},
        {"HEDGE_MODE": "replay"},
    ],
)
def test_what_is_told_otherwise_stays_as_it_is(given: Any, variables: dict[str, str]) -> None:
    settings = given(**variables)
    assert live_settings(settings) is settings


def test_a_calendar_in_the_env_file_is_told(given: Any, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HEDGE_CALENDAR=XNYS\n")
    assert live_settings(given()).calendar == "XNYS"


def test_a_store_keeps_to_the_calendar_it_is_on(given: Any) -> None:
    fill(given(), "2024-01-05")  # a Friday of New York
    assert live_settings(given()).calendar == "XNYS"


@pytest.mark.parametrize("label", ["2024-01-05", "2024-01-06"])
def test_a_store_that_is_always_open_stays_so(given: Any, label: str) -> None:
    fill(live_settings(given()), label)
    assert live_settings(given()).calendar == ALWAYS_OPEN


def test_dagster_and_the_command_line_open_the_store_alike(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many symbols the rows read last take more memory than usual."""
    remembered = []
    monkeypatch.setattr(
        "hedge_pipeline.stages.deployment.Store",
        lambda url, cached_bytes: remembered.append((url, cached_bytes)),
    )
    symbols = ",".join(f"SYM{number}" for number in range(100))
    settings = given(HEDGE_SYMBOLS=symbols)
    monkeypatch.setenv("HEDGE_DATA_URL", settings.data_url)
    monkeypatch.setenv("HEDGE_SYMBOLS", symbols)
    open_deployment(settings)
    loop.StoreResource().open()
    assert remembered == [(settings.data_url, 100 << 20)] * 2


def test_a_training_asked_for_in_python_is_of_the_service_s_market(given: Any) -> None:
    """`opening.retrain(load_settings(), "SIMQ")`, as README says, on a store of `hedge up`."""
    fill(live_settings(given()), "2024-01-06")  # a Saturday
    stages.mature_outcomes(open_deployment(live_settings(given())), "2024-01-06")
    said = "SIMQ has 1 of the 5 sessions a training needs"
    assert retrain(given(), "SIMQ") == (None, said)


def test_a_training_asked_for_in_python_leaves_a_replay_alone(given: Any) -> None:
    open_deployment(given()).store.write_bytes(MARKER, b"{}")
    with pytest.raises(stages.StageError, match="holds a replay: set HEDGE_MODE=replay"):
        retrain(given(), "SIMQ")


def test_what_a_look_of_a_schedule_has_read_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code server opens a deployment for every look, each minute, for months."""
    monkeypatch.setenv("HEDGE_DATA_URL", str(tmp_path))
    made = loop.LoopResource(
        source=loop.SourceResource(), store=loop.StoreResource(), registry=loop.RegistryResource()
    )
    gc.disable()
    try:
        with dg.build_resources({"loop": made}) as opened:
            deployment = weakref.ref(opened.loop.deployment)
            assert deployment() is opened.loop.deployment
        assert deployment() is None
    finally:
        gc.enable()
