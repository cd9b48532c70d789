"""The two web UIs and the report in a real browser, on the result of a small demo.

Needs Chromium as Debian packages it, and Playwright's Python package, which drives it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hedge_pipeline.market.tables import RAW_QUOTES
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.resources.history import report_replay
from hedge_pipeline.resources.registry import experiment_name
from hedge_pipeline.resources.views import HOME, page_of_model, page_of_runs
from hedge_pipeline.service import Ports, commands
from hedge_pipeline_tests.replays import demo_in, environment, hedge, settings_in

CHROMIUM = Path("/usr/bin/chromium")
REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
PATIENCE_MS = 30_000
SESSION_ASSETS = ("raw_quotes", "hedge_levels", "prediction_log")
SYMBOL_ASSETS = ("champion_model", "model_performance")
TABLES_SHOWN = {
    "outcomes": "hit rate",
    "features": "NULL, %",
    "trained_model": "share of ups",
    "signal_report": "profit factor",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (Debian: chromium)"
    ),
]


@dataclass(frozen=True)
class Uis:
    """Addresses of the two UIs, the replay they show, and variables of its commands."""

    dagster: str
    mlflow: str
    out: Path
    variables: dict[str, str]

    def ask(self, query: str) -> dict[str, Any]:
        """Answer of Dagster's GraphQL."""
        request = urllib.request.Request(
            f"{self.dagster}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read())["data"]
        return found

    def experiment(self, symbol: str) -> str:
        """Identifier of a symbol's experiment."""
        name = urllib.parse.quote(experiment_name(symbol))
        address = f"{self.mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return str(json.loads(answer.read())["experiment"]["experiment_id"])


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextlib.contextmanager
def running(arguments: Sequence[str], answers: str, log: Path, **variables: str) -> Iterator[None]:
    """A server in a process group of its own, from its first answer until it is stopped."""
    with log.open("w") as said:
        server = subprocess.Popen(
            arguments,
            cwd=REPOSITORY,
            env=environment(**variables),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(answers, timeout=5):
                break
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def uis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uis]:
    demo = demo_in(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp("browser")
    out = folder / "demo"
    shutil.copytree(demo.out, out)
    home = out / "dagster_home"
    report_replay(open_deployment(settings_in(out)), home)
    dagster, mlflow = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    variables = {
        "DAGSTER_HOME": str(home),
        "HEDGE_DATA_URL": str(out),
        "HEDGE_MODE": "replay",
        "HEDGE_SYMBOLS": "SIMQ,SIMN",
        "MLFLOW_TRACKING_URI": f"sqlite:///{out}/mlflow.db",
        "PYTHONPATH": str(REPOSITORY),
    }
    programs = Path(sys.executable).parent
    serve_dagster = (
        *(str(programs / "dagster"), "dev", "-w", "workspace.yaml"),
        *("-p", dagster.rpartition(":")[2]),
    )
    ports = Ports(*(int(address.rpartition(":")[2]) for address in (dagster, mlflow)))
    line = commands(settings_in(out), ports, folder, headless=False)["mlflow"]
    serve_mlflow = ("sh", "-c", str(line))
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_BACKEND_STORE_URI": variables["MLFLOW_TRACKING_URI"],
    }
    with (
        running(serve_dagster, f"{dagster}/server_info", folder / "dagster.log", **variables),
        running(serve_mlflow, f"{mlflow}/health", folder / "mlflow.log", **variables, **quiet),
    ):
        yield Uis(dagster, mlflow, out, variables)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """A page of its own; what it showed last is left in the test's folder to look at."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(PATIENCE_MS)
    yield opened
    opened.screenshot(path=tmp_path / "last.png")
    opened.close()


def widths(page: Any, kind: str) -> list[int]:
    """Widths in which pictures of a kind have really been drawn."""
    found: list[int] = page.evaluate(
        "kind => [...document.querySelectorAll('img')]"
        ".filter(x => x.src.startsWith(`data:image/${kind}`)).map(x => x.naturalWidth)",
        kind,
    )
    return found


# -- Dagster ---------------------------------------------------------------------------------------


def test_the_asset_graph_shows_every_asset(uis: Uis, page: Any) -> None:
    page.goto(f"{uis.dagster}/asset-groups")
    for group in ("market", "features", "predictions", "learning"):
        page.get_by_text(group, exact=True).last.wait_for()
    page.wait_for_timeout(500)  # of keys it knows nothing before it is drawn
    page.keyboard.press("Alt+E")  # expands the groups
    for name in (*SESSION_ASSETS, *SYMBOL_ASSETS, *TABLES_SHOWN, "option_chains"):
        page.get_by_text(name, exact=True).first.wait_for()


@pytest.mark.parametrize("name", [*SESSION_ASSETS, *SYMBOL_ASSETS])
def test_the_page_of_an_asset_shows_a_picture_at_once_and_a_larger_one_on_a_click(
    uis: Uis, page: Any, name: str
) -> None:
    page.goto(f"{uis.dagster}/assets/{name}?view=overview")
    page.locator("img[src^='data:image/svg+xml']").first.wait_for()
    assert all(width > 200 for width in widths(page, "svg+xml"))
    page.get_by_text("[Show Markdown]").first.click()
    page.locator("img[src^='data:image/png']").first.wait_for()
    assert all(width > 400 for width in widths(page, "png"))


@pytest.mark.parametrize("name", TABLES_SHOWN)
def test_the_page_of_an_asset_without_a_course_shows_a_table_at_once(
    uis: Uis, page: Any, name: str
) -> None:
    page.goto(f"{uis.dagster}/assets/{name}?view=overview")
    page.get_by_role("columnheader", name=TABLES_SHOWN[name]).first.wait_for()


def test_a_materialization_launched_in_the_ui_lands(uis: Uis, page: Any) -> None:
    page.goto(f"{uis.dagster}/assets/model_performance?view=overview")
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_text("Select a partition or create one").click()
    page.locator("text=SIMQ >> visible=true").last.click()
    page.get_by_text("Launch runs to materialize").click()  # away from the list
    page.get_by_role("button", name="Launch").last.click()
    query = "{runsOrError {... on Runs {results {status assetSelection {path}}}}}"
    deadline = time.monotonic() + 90
    while True:
        runs = uis.ask(query)["runsOrError"]["results"]
        if runs and runs[0]["status"] in ("SUCCESS", "FAILURE"):
            break
        assert time.monotonic() < deadline, runs
        time.sleep(1)
    assert [run["status"] for run in runs] == ["SUCCESS"]
    page.goto(f"{uis.dagster}/assets/model_performance?view=partitions&partition=SIMQ")
    page.get_by_text("base_rate_accuracy").first.wait_for()
    page.goto(f"{uis.dagster}/runs")
    page.get_by_text("Success").first.wait_for()


@pytest.mark.parametrize("name", ["polling_schedule", "retraining_sensor"])
def test_a_schedule_and_a_sensor_are_turned_on_in_the_ui(uis: Uis, page: Any, name: str) -> None:
    page.goto(f"{uis.dagster}/automation")
    row = page.locator("div[class*=ListItem_listItem]", has=page.get_by_text(name, exact=True))
    # one that is drawn before its state is known cannot be turned
    switch = row.locator("label[class*=formatSwitch]:not([class*=disabled])")
    kind = "schedule" if name.endswith("schedule") else "sensor"
    place = 'repositoryName: "__repository__", repositoryLocationName: "hedge_pipeline"'
    selector = f'{place}, {kind}Name: "{name}"'
    query = (
        f"{{{kind}OrError({kind}Selector: {{{selector}}}) {{... on {kind.capitalize()} "
        f"{{{kind}State {{status}}}}}}}}"
    )

    def wait_for(wanted: str, *, checked: bool) -> None:
        """Clicks again while nothing follows: the page may be drawn anew under a click."""
        clicked = 0.0
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while True:
            status = uis.ask(query)[f"{kind}OrError"][f"{kind}State"]["status"]
            shown = switch.locator("input").is_checked()
            if status == wanted and shown is checked:
                return
            assert time.monotonic() < deadline, (status, shown)
            if status != wanted and shown is not checked and time.monotonic() > clicked + 5:
                switch.click()
                clicked = time.monotonic()
            time.sleep(0.2)

    wait_for("STOPPED", checked=False)
    wait_for("RUNNING", checked=True)
    wait_for("STOPPED", checked=False)


# -- MLflow ----------------------------------------------------------------------------------------


def test_mlflow_lists_the_experiments_as_those_of_trained_models(uis: Uis, page: Any) -> None:
    page.goto(f"{uis.mlflow}/{HOME}")
    for symbol in ("SIMQ", "SIMN"):
        page.get_by_text(f"{symbol}: direction over the horizon").first.wait_for()
    assert page.get_by_text("Model registry").first.is_visible()


def test_a_click_on_an_experiment_opens_its_trained_models(uis: Uis, page: Any) -> None:
    """Also in a browser that was never told, as a person's is."""
    page.goto(f"{uis.mlflow}/#/experiments")
    page.get_by_text("SIMQ: direction over the horizon").first.click()
    page.get_by_text("SIMQ v4 to").first.wait_for()
    header = page.get_by_text("live_total/base_rate_accuracy", exact=True).first
    header.wait_for()
    fits = "x => x.scrollWidth <= x.clientWidth"
    assert header.evaluate(fits)  # none of its letters is cut off
    assert not page.get_by_text("Ask questions about your").is_visible()  # the assistant
    page.locator("input[type=radio][value=CHART]").evaluate("x => x.click()")
    page.get_by_text("live, by session and version").first.wait_for()


@pytest.mark.parametrize("symbol", ["SIMQ", "SIMN"])
def test_the_table_of_runs_has_versions_and_what_they_scored(
    uis: Uis, page: Any, symbol: str
) -> None:
    page.goto(f"{uis.mlflow}/{page_of_runs(uis.experiment(symbol))}")
    for version in (1, 2, 3, 4):
        page.get_by_text(f"{symbol} v{version} to").first.wait_for()
    page.get_by_text("live_total/accuracy").first.wait_for()


def test_charts_of_live_accuracy_are_there_without_a_click(uis: Uis, page: Any) -> None:
    page.goto(f"{uis.mlflow}/{page_of_runs(uis.experiment('SIMQ'), charts=True)}")
    page.get_by_text("live, by session and version").first.wait_for()
    page.get_by_text("live/accuracy", exact=True).first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()


def test_the_page_of_the_model_says_who_is_champion_and_why(uis: Uis, page: Any) -> None:
    page.goto(f"{uis.mlflow}/{page_of_model('hedge-SIMQ')}")
    page.get_by_text("No champion").first.wait_for()
    page.get_by_text("of the 20 needed").first.wait_for()
    page.get_by_text("challenger").first.wait_for()


# -- the report ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_without_a_single_request(
    uis: Uis, browser: Any, tmp_path: Path, scheme: str
) -> None:
    out = tmp_path / "report.html"
    said = hedge("report", "--out", str(out), cwd=tmp_path, **uis.variables)
    assert said.returncode == 0, said.stderr
    page = browser.new_page(color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(out.as_uri())
    page.wait_for_load_state("networkidle")
    assert [url for url in asked if not url.startswith("data:")] == [out.as_uri()]
    assert min(widths(page, "png")) > 400
    last = open_deployment(settings_in(uis.out)).store.sessions(RAW_QUOTES)[-1]
    assert page.get_by_text(last).first.is_visible()
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") is (scheme == "light")
    page.close()
