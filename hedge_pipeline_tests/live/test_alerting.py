"""Alerts: for live signals only, after the row is stored, and once whatever happens."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline.live.alerting import FRESH, alert_signals
from hedge_pipeline.market.tables import ALERTS, PREDICTION_LOG
from hedge_pipeline.stages import Deployment
from hedge_pipeline.store import Store
from hedge_pipeline_tests.learning.conftest import log_rows, session_on
from hedge_pipeline_tests.markets import FakeClock, FakeMarket, deployment_in

SESSION = session_on(5, bars=20)
NOW = SESSION.opens + dt.timedelta(minutes=3)


def signals(**columns: Any) -> pd.DataFrame:
    """Three live rows of a proven model, the first of them a signal."""
    given = {
        "signal_fired": [True, False, False],
        "level_type": "support",
        "level_source": "HP",
        "level_price": 99.5,
        "strength_score": 20.0,
        "skill": "proven",
        "mode": "live",
        "decided_at": pd.Timestamp(NOW),
        **columns,
    }
    return log_rows(SESSION, np.full(3, 0.2), **given)


def deployment_with(folder: Path, rows: pd.DataFrame) -> Deployment:
    found = deployment_in(folder, FakeMarket(), FakeClock(NOW))
    found.store.append(PREDICTION_LOG, SESSION.label, rows)
    return found


def posted(deployment: Deployment, *, unproven: bool = False) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    alert_signals(
        deployment,
        SESSION.label,
        lambda text, title: found.append((title, text)),
        unproven=unproven,
    )
    return found


def test_a_signal_is_told_once_even_after_a_restart(tmp_path: Path) -> None:
    first = deployment_with(tmp_path, signals())
    ((title, text),) = posted(first)
    assert "long at 100.00" in title
    assert "HP support" in text and "skill is proven" in text
    assert posted(first) == []
    again = deployment_in(tmp_path, FakeMarket(), FakeClock(NOW))
    assert posted(again) == []
    assert len(again.store.read(ALERTS)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "catch_up"},
        {"role": "baseline"},
        {"skill": "unproven"},
        {"skill": "lost"},
        {"decided_at": pd.Timestamp(NOW - FRESH - dt.timedelta(seconds=1))},
        {"signal_fired": False},
    ],
)
def test_what_is_no_fresh_live_signal_of_a_proven_model_is_not_told(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = deployment_with(tmp_path, signals(**changes))
    assert posted(found) == []
    assert found.store.read(ALERTS).empty


def test_unproven_signals_are_told_if_asked_for_and_say_so(tmp_path: Path) -> None:
    ((_, text),) = posted(deployment_with(tmp_path, signals(skill="unproven")), unproven=True)
    assert "skill is NOT proven" in text


def test_two_pollers_tell_a_signal_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find no alert stored; the file's exclusive creation decides."""
    first = deployment_with(tmp_path, signals())
    second = deployment_in(tmp_path, FakeMarket(), FakeClock(NOW))
    real = Store.read

    def blind(store: Store, table: Any, *rest: Any, **options: Any) -> pd.DataFrame:
        frame = real(store, table, *rest, **options)
        return frame.head(0) if table is ALERTS else frame

    monkeypatch.setattr(Store, "read", blind)
    assert len(posted(first)) + len(posted(second)) == 1


def test_the_row_is_claimed_before_the_alert_is_posted(tmp_path: Path) -> None:
    found = deployment_with(tmp_path, signals())

    def fails(text: str, title: str) -> None:
        assert len(found.store.read(ALERTS)) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alert_signals(found, SESSION.label, fails, unproven=False)
    assert posted(found) == []
