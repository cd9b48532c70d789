"""The service on Yahoo as a user starts it: real processes and the real yfinance client.

Only Yahoo itself is a double on the loopback. There is one story, told by the fixture: a first
model, a start, an outage of Yahoo over a minute that falls due, its end, and SIGTERM.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from hedge_pipeline import stages
from hedge_pipeline.market.sources.yahoo import YahooSource
from hedge_pipeline.market.tables import FEATURE_ROWS, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline.opening import open_deployment
from hedge_pipeline.settings import load_settings
from hedge_pipeline_tests.markets import MINUTE
from hedge_pipeline_tests.test_service import Service, free_port
from hedge_pipeline_tests.yahoo_double import Fault, YahooDouble, calendar_of, true_bars

pytestmark = pytest.mark.slow

SYMBOL = "BTC-USD"
POLLING_SECONDS = 10
FINAL = MINUTE + pd.Timedelta(YahooSource.delay)  # from a bar's start until it may be used
MOST_LAG_SECONDS = 130.0  # after the end of the bar
REFUSED = f"{SYMBOL}: no new bars: {SYMBOL}: Yahoo answers 503"
PRICES = ["open", "high", "low", "close", "volume"]


@dataclass
class YahooService(Service):
    """A service whose processes take the double for Yahoo."""

    lead: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        ours = {
            "HEDGE_SOURCE": "yahoo",
            "HEDGE_CALENDAR": "24/7",
            "HEDGE_SYMBOLS": SYMBOL,
            "POLLING_INTERVAL": str(POLLING_SECONDS),
        }
        return {**super().variables, **self.lead, **ours}

    def refusals(self) -> int:
        """Log lines so far that name the outage."""
        return self.log.read_text(errors="replace").count(REFUSED)

    def stored(self) -> list[pd.Timestamp]:
        """Starts of the stored bars, ascending."""
        return sorted(self.store.read(RAW_QUOTES, columns=("bar_ts",))["bar_ts"])


@dataclass(frozen=True)
class Story:
    """What happened; the service has ended.

    Attributes:
        polling: when the first predictions had been seen.
        down: from when on Yahoo answered 503.
        due: start of the first minute that became final while it did.
        missed: whether that minute was still missing just before the end of the outage.
        mended: end of the outage.
        ended: when the service was told to end.
        bootstrapped: charts asked for by the bootstrap.
    """

    service: YahooService
    yahoo: YahooDouble
    polling: pd.Timestamp
    down: pd.Timestamp
    due: pd.Timestamp
    missed: bool
    mended: pd.Timestamp
    ended: pd.Timestamp
    bootstrapped: int


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("yahoo")
    (folder / "data").mkdir()
    with YahooDouble(folder / "certificates") as yahoo:
        service = YahooService(folder / "data", free_port(), free_port(), lead=yahoo.env)
        try:
            assert f"{SYMBOL}: version 1 on " in service.run("bootstrap", "--days", "6")
            bootstrapped = yahoo.count()
            service.start("--headless")
            service.wait_for("prediction", 120, lambda: len(service.live_rows()))
            polling = now()
            yahoo.fault(Fault("answer", status=503, body=b"Service Unavailable"))
            down = now()
            service.wait_for("refused poll", 30, service.refusals)
            due = service.stored()[-1] + MINUTE
            service.wait_for("due minute", 90, lambda: now() > due + FINAL)
            before = service.refusals()
            service.wait_for("refused poll", 30, lambda: service.refusals() > before)
            missed = due not in service.stored()
            yahoo.mend()
            mended = now()
            service.wait_for(
                "end of the outage", 40, lambda: due in set(service.live_rows()["bar_ts"])
            )
            ended = now()
            service.assert_ends_on(signal.SIGTERM)
            yield Story(service, yahoo, polling, down, due, missed, mended, ended, bootstrapped)
        finally:
            service.kill_everything()


def now() -> pd.Timestamp:
    return pd.Timestamp.now("UTC")


def test_every_bar_is_predicted_once_and_in_time_by_the_first_model(story: Story) -> None:
    rows = story.service.live_rows()
    assert set(rows["mode"]) <= {"live", "catch_up"}
    assert "live" in set(rows["mode"])
    assert not rows.duplicated(["symbol", "bar_ts"]).any()
    assert set(rows["model_version"]) == {1}
    assert rows["prediction"].notna().all()
    # what was final before somebody polled is as late as the start was; an outage is no excuse
    prompt = rows[rows["bar_ts"] >= story.due]
    assert len(prompt)
    assert set(prompt["mode"]) == {"live"}
    lag = (prompt["decided_at"] - prompt["bar_ts"]).dt.total_seconds() - MINUTE.total_seconds()
    assert lag.between(YahooSource.delay.total_seconds(), MOST_LAG_SECONDS).all()


def test_an_outage_loses_and_doubles_no_minute_and_the_log_names_it(story: Story) -> None:
    assert story.missed
    assert story.service.refusals() >= 2
    story.service.assert_no_minute_is_missing_or_doubled()
    stored = story.service.stored()
    assert len(stored) == len(set(stored))
    assert stored[-1] + MINUTE + FINAL > story.mended  # the first minute not stored was not final
    arrived = story.service.store.read(RAW_QUOTES).set_index("bar_ts")["available_at"]
    assert arrived[story.due] > story.mended
    assert not ((arrived > story.down + pd.Timedelta(seconds=1)) & (arrived < story.mended)).any()
    assert len(story.service.runs()) == 1  # the run that met the outage has lived through it


def test_bars_are_the_truth_and_features_follow_from_them_bit_for_bit(story: Story) -> None:
    store = story.service.store
    labels = store.sessions(RAW_QUOTES)
    assert len(labels) >= 6
    deployment = open_deployment(
        load_settings(symbols=(SYMBOL,), calendar="24/7", data_url=str(story.service.data))
    )
    for label in labels:
        bars = store.read(RAW_QUOTES, [label])
        assert set(bars["source"]) == {"yahoo"}
        truth = true_bars(SYMBOL, calendar_of(SYMBOL).session(label)).rename(
            columns={"ts": "bar_ts"}
        )
        told = ["symbol", "bar_ts", *PRICES]
        assert_frame_equal(
            bars[told].set_index("bar_ts"),
            truth[told].set_index("bar_ts").loc[bars["bar_ts"]],
            check_exact=True,
            check_dtype=False,
            check_index_type=False,
            check_freq=False,
        )
        assert_frame_equal(
            store.read(FEATURE_ROWS, [label]),
            stages.features_of(deployment, label),
            check_exact=True,
        )
        served = store.read(PREDICTION_LOG, [label]).merge(bars, on=["symbol", "bar_ts"])
        assert (served["price"] == served["close"]).all()


def test_yahoo_is_asked_once_a_poll_and_nobody_else_at_all(story: Story) -> None:
    assert story.yahoo.strangers == []
    assert {asked.kind for asked in story.yahoo.requests} <= {
        "chart",
        "options",
        "cookie",
        "crumb",
        "consent",
    }
    # minutes and daily bars of each session
    assert story.bootstrapped <= 14
    asked = story.yahoo.count() - story.bootstrapped
    repeated = story.service.refusals()  # yfinance asks again, once, what was answered with 503
    polls = (story.ended - story.polling).total_seconds() / POLLING_SECONDS + 1
    assert abs(asked - repeated - polls) <= 2
