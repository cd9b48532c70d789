"""How a source is found by its name, third-party ones included."""

from __future__ import annotations

import datetime as dt
import importlib
import sys
from pathlib import Path

import pytest

from hedge_pipeline.market.calendar import SessionCalendar
from hedge_pipeline.market.sources import (
    BadInput,
    SourceError,
    SourceOptions,
    UnknownSource,
    available_sources,
    open_source,
)
from hedge_pipeline.market.sources.file import FileSource
from hedge_pipeline.market.sources.simulated import SimulatedSource

OPTIONS = SourceOptions(SessionCalendar(end=dt.date(2026, 12, 31)), seed=11, extra={"key": "k"})
PLUG_IN = """
import datetime as dt

from hedge_pipeline.market.sources import BadInput, Capabilities, NoDataYet


class Moon:
    name = "moon"
    capabilities = Capabilities(history=False)
    delay = dt.timedelta(seconds=1)

    def __init__(self, options):
        if options.extra.get("key") != "k":
            raise BadInput("moon needs a key")
        self.options = options

    def bars(self, symbol, session, now):
        raise NoDataYet("the moon is silent")
"""


@pytest.fixture
def moon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution with a source of its own, as pip would leave it."""
    (tmp_path / "moon_of_tests.py").write_text(PLUG_IN)
    information = tmp_path / "moon_of_tests-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: moon-of-tests\nVersion: 1.0\n"
    )
    (information / "entry_points.txt").write_text(
        "[hedge_pipeline.sources]\nmoon = moon_of_tests:Moon\nlost = moon_of_tests:Nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "moon_of_tests", raising=False)
    importlib.invalidate_caches()
    return tmp_path


@pytest.mark.usefixtures("moon")
def test_an_installed_plug_in_is_opened_by_its_name() -> None:
    source = open_source("moon", OPTIONS)
    assert source.name == "moon"
    assert source.capabilities.history is False
    assert source.options is OPTIONS  # type: ignore[attr-defined]
    assert "moon" in available_sources()


@pytest.mark.usefixtures("moon")
def test_the_outcomes_of_a_plug_in_are_the_project_s() -> None:
    source = open_source("moon", OPTIONS)
    session = OPTIONS.calendar.session("2026-03-10")
    with pytest.raises(SourceError, match="the moon is silent"):
        source.bars("LUNA", session, session.closes)


@pytest.mark.usefixtures("moon")
def test_a_plug_in_may_refuse_its_options() -> None:
    with pytest.raises(BadInput, match="moon needs a key"):
        open_source("moon", SourceOptions(OPTIONS.calendar))


def test_a_plug_in_that_is_not_installed_is_not_there() -> None:
    assert "moon" not in available_sources()


@pytest.mark.usefixtures("moon")
def test_an_unknown_source_is_refused_and_the_installed_ones_are_named() -> None:
    with pytest.raises(UnknownSource) as refused:
        open_source("mars", OPTIONS)
    assert str(refused.value) == (
        "HEDGE_SOURCE='mars': no such source; installed are "
        + ", ".join(sorted(available_sources()))
    )
    assert {"file", "lost", "moon", "simulated"} <= set(available_sources())


def test_the_built_in_sources_are_opened_by_name(tmp_path: Path) -> None:
    assert isinstance(open_source("simulated", OPTIONS), SimulatedSource)
    with pytest.raises(BadInput, match="needs a file or folder"):
        open_source("file", OPTIONS)
    path = tmp_path / "bars.csv"
    path.write_text("symbol,ts,open,high,low,close,volume\nA,2026-03-10T13:30:00Z,1,1,1,1,1\n")
    opened = open_source("file", SourceOptions(OPTIONS.calendar, (str(path),)))
    assert isinstance(opened, FileSource)
    assert opened.symbols == ("A",)


def test_a_source_gets_the_seed_of_the_options() -> None:
    source = open_source("simulated", OPTIONS)
    assert isinstance(source, SimulatedSource)
    assert source.seed == 11
