"""`hedge report`: its numbers are those of the tables, and the page needs nothing but itself."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hedge_pipeline import cli, report, stages
from hedge_pipeline.levels.trades import report as trade_report
from hedge_pipeline.market.tables import GAPS, PREDICTION_LOG, RAW_QUOTES, TRADES
from hedge_pipeline.status import status
from hedge_pipeline_tests.replays import (
    DEMO_SESSIONS,
    SYMBOLS,
    Demo,
    demo_in,
    environment,
    replay_in,
    rows_of,
)


class Page(HTMLParser):
    """Text and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.pictures: list[str] = []
        self.words: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.scripts += tag == "script"
        names = ("src", "href", "srcset", "data", "action", "poster")
        self.addresses += [given[name] or "" for name in names if name in given]
        if tag == "img":
            self.pictures.append(given["alt"] or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo_in(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def found(demo: Demo) -> dict[str, Any]:
    return report.numbers(replay_in(demo.out))


@pytest.fixture(scope="module")
def html(demo: Demo, found: dict[str, Any]) -> str:
    return report.page(replay_in(demo.out), found)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)


def invoke(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, env={"HEDGE_DATA_URL": "data", **variables})


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_report_and_the_status_say_the_same(
    demo: Demo, found: dict[str, Any], symbol: str
) -> None:
    part, known = found["symbols"][symbol], status(replay_in(demo.out))["symbols"][symbol]
    names = ("predictions", "abstentions", "accuracy", "log_loss", "skill", "evidence", "trust")
    assert {name: part[name] for name in names} == {name: known[name] for name in names}
    assert part["outcomes"] == known["matured_outcomes"]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_predictions_coverage_versions_and_signals_are_those_of_the_tables(
    demo: Demo, found: dict[str, Any], symbol: str
) -> None:
    part = found["symbols"][symbol]
    log = rows_of(demo.store, PREDICTION_LOG, symbols=[symbol]).query("role == 'served'")
    bars = rows_of(demo.store, RAW_QUOTES, symbols=[symbol])
    assert part["predictions"] == log["prediction"].notna().sum() > 0
    assert part["coverage"] | {"causes": 0, "worst": 0} == {
        "sessions": DEMO_SESSIONS,
        "expected": 390 * DEMO_SESSIONS,
        "bars": len(bars),
        "share": 1.0,
        "gaps": len(rows_of(demo.store, GAPS, symbols=[symbol])),
        "causes": 0,
        "worst": 0,
    }
    assert part["retrains"] == len(part["versions"]) == 4
    assert [version["version"] for version in part["versions"]] == [4, 3, 2, 1]
    assert part["versions"][0]["accuracy"]["value"] is None
    served = sum(version["accuracy"]["n"] for version in part["versions"])
    assert served == part["outcomes"]
    signals = trade_report(rows_of(demo.store, TRADES, symbols=[symbol]))["overall"]
    assert part["win_rate"]["value"] == signals["win_rate"]
    if signals["win_rate"] is not None:
        assert part["false_positive_rate"]["value"] == pytest.approx(1 - signals["win_rate"])


def test_gaps_are_counted_by_cause_and_the_worst_session_is_named(
    demo: Demo, tmp_path: Path
) -> None:
    deployment = replay_in(demo.copy(tmp_path / "out"))
    label = deployment.calendar.labels[2]
    bars = rows_of(deployment.store, RAW_QUOTES, [label], ["SIMN"]).iloc[5:8]
    gaps = bars[["symbol", "bar_ts"]].assign(cause="rate_limited", detail=None)
    deployment.store.append(GAPS, label, GAPS.conform(gaps))
    part = report.numbers(deployment)["symbols"]["SIMN"]["coverage"]
    assert part["causes"] == {"rate_limited": 3}
    assert part["worst"] == {label: 3}


# -- the page --------------------------------------------------------------------------------------


def test_the_page_asks_nobody_for_anything(html: str) -> None:
    page = Page(html)
    assert page.scripts == 0
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//|@import|url\(", without_pictures)


def test_the_verdict_comes_first_and_numbers_stand_beside_the_base_rate(
    html: str, found: dict[str, Any]
) -> None:
    text = Page(html).text
    for symbol in SYMBOLS:
        part = found["symbols"][symbol]
        assert text.index(part["verdict"]) < text.index("predictions collected")
        assert "not shown to be better than the base rate" in part["verdict"]
        accuracy = part["accuracy"]
        assert (
            f"{100 * accuracy['value']:.1f} % [{100 * accuracy['lo']:.1f}, "
            f"{100 * accuracy['hi']:.1f}] base rate {100 * accuracy['base_rate']:.1f} %" in text
        )
        assert f"{part['predictions']:,}" in text
        assert f"{part['log_loss']:.5f} base rate {part['base_log_loss']:.5f}" in text
        assert part["retraining"][1:] in text


def test_every_symbol_has_its_pictures(html: str) -> None:
    pictures = Page(html).pictures
    for symbol in SYMBOLS:
        own = " ".join(text for text in pictures if text.startswith(symbol))
        for what in ("accuracy over", "log-loss gained", "evidence", "reliability of the prob"):
            assert what in own


def test_the_page_follows_the_colours_of_the_system(html: str) -> None:
    assert "prefers-color-scheme: dark" in html


def test_without_any_model_the_page_says_so_instead_of_numbers(tmp_path: Path) -> None:
    deployment = replay_in(tmp_path / "out")
    label = deployment.calendar.labels[0]
    stages.collect(deployment, label)
    stages.build_features(deployment, label)
    stages.log_predictions(deployment, label)
    stages.mature_outcomes(deployment, label)
    found = report.numbers(deployment)
    text = Page(report.page(deployment, found)).text
    assert "Nothing is known about predictions of SIMQ yet" in text
    assert "No model has been trained yet." in text
    assert "No prediction that counts has met its outcome yet." in text
    assert "No signal has fired" in text
    assert "nan" not in text.lower().split()
    assert "None" not in text


def test_names_are_shown_as_text(demo: Demo, found: dict[str, Any]) -> None:
    named = found | {"source": "<script>alert(1)</script>"}
    assert Page(report.page(replay_in(demo.out), named)).scripts == 0


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_prints_the_headline(demo: Demo, tmp_path: Path) -> None:
    place = {"HEDGE_DATA_URL": str(demo.out), "HEDGE_MODE": "replay"}
    result = invoke("report", "--out", "page.html", "--json", **place)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["written"] == str(tmp_path / "page.html")
    assert set(said["symbols"]) == set(SYMBOLS)
    assert said["symbols"]["SIMQ"]["accuracy"]["n"] > 0
    assert said["symbols"]["SIMQ"]["verdict"] in Page((tmp_path / "page.html").read_text()).text


def test_an_empty_store_is_one_line_with_the_next_step(tmp_path: Path) -> None:
    result = invoke("report")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: data holds no session: run `hedge bootstrap`")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(demo: Demo) -> None:
    place = {"HEDGE_DATA_URL": str(demo.out), "HEDGE_MODE": "replay"}
    result = invoke("report", "--out", "nowhere/page.html", **place)
    assert result.exit_code == 1
    wanted = "error: nowhere/page.html cannot be written: No such file or directory; see --out\n"
    assert result.stderr == wanted
