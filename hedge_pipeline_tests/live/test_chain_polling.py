"""Option chains beside the bars: in time, never waited for, and every failure with its reason."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hedge_pipeline import stages
from hedge_pipeline.assets import pictures
from hedge_pipeline.levels.chain import Chain
from hedge_pipeline.levels.joining import NO_CHAIN
from hedge_pipeline.levels.signals import NO_LEVEL
from hedge_pipeline.levels.snapshot import Snapshot, gated
from hedge_pipeline.live import chain_polling
from hedge_pipeline.market.calendar import Session
from hedge_pipeline.market.sources import (
    CHAIN_COLUMNS,
    Capabilities,
    RateLimited,
    SourceDown,
    SourceError,
)
from hedge_pipeline.market.tables import (
    CHAIN_FETCHES,
    FEATURE_ROWS,
    HEDGE_LEVELS,
    OPTION_CHAINS,
    PREDICTION_LOG,
    Table,
)
from hedge_pipeline.stages import chains
from hedge_pipeline.store import Store, StoreError
from hedge_pipeline_tests.live.test_loop import at
from hedge_pipeline_tests.markets import (
    HALF_DAY,
    MINUTE,
    SYMBOLS,
    FakeMarket,
    Watch,
    copy_of,
    history_in,
    watch,
)

EXPIRIES = (HALF_DAY, "2024-12-20", "2025-01-17")


@dataclass
class ChainMarket(FakeMarket):
    """Random walks with option chains: the largest put interest at 99, the largest call at 101.

    Attributes:
        chain_errors: raised by the next requests for a symbol, one each.
        chain_held: answers wait until the event is set.
        sweeps: whether each request asked for everything, by symbol.
        empty_interest: open interest is zero.
    """

    chain_errors: dict[str, list[SourceError | ValueError]] = field(default_factory=dict)
    chain_held: threading.Event | None = None
    sweeps: dict[str, list[bool]] = field(default_factory=dict)
    empty_interest: bool = False
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(has_chains=True))

    def chains(
        self, symbol: str, session: Session, now: dt.datetime, *, sweep: bool
    ) -> pd.DataFrame:
        self.sweeps.setdefault(symbol, []).append(sweep)
        if self.chain_held is not None:
            assert self.chain_held.wait(30)
        if self.chain_errors.get(symbol):
            raise self.chain_errors[symbol].pop(0)
        rows = [
            (expiry, strike, right, self._interest(strike, right))
            for expiry in (EXPIRIES if sweep else EXPIRIES[:1])
            for strike in range(90, 111)
            for right in "CP"
        ]
        frame = pd.DataFrame(rows, columns=["expiry", "strike", "right", "open_interest"])
        asked = pd.Timestamp(now).as_unit("us")
        return frame.assign(
            as_of=asked - dt.timedelta(minutes=15),
            available_at=asked,
            strike=frame["strike"].astype(float),
            volume=10.0,
            implied_volatility=0.2,
            **dict.fromkeys(("bid", "ask", "last"), np.nan),
        )[list(CHAIN_COLUMNS)]

    def _interest(self, strike: int, right: str) -> float:
        if self.empty_interest:
            return 0.0
        return 9000.0 if (strike, right) in ((99, "P"), (101, "C")) else 500.0


class Inline:
    """A thread that has done its work when it is started."""

    def __init__(self, target: Callable[[], None], **others: Any) -> None:
        self._target = target

    def start(self) -> None:
        self._target()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return history_in(tmp_path_factory.mktemp("history") / "data")


@pytest.fixture
def folder(history: Path, tmp_path: Path) -> Path:
    return copy_of(history, tmp_path / "data")


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_polling, "Thread", Inline)


def polled(folder: Path, market: ChainMarket, until: dt.datetime) -> Watch:
    found = watch(folder, market, at(1, 1))
    found.run(until=until)
    return found


@pytest.mark.usefixtures("inline")
def test_chains_are_asked_for_every_cache_ttl_and_the_first_time_for_everything(
    folder: Path,
) -> None:
    market = ChainMarket()
    found = polled(folder, market, at(16, 2))
    assert market.sweeps == {symbol: [True, False, False, False] for symbol in SYMBOLS}
    fetches = found.rows(CHAIN_FETCHES, HALF_DAY, SYMBOLS[0])
    assert set(fetches["status"]) == {"ok"}
    assert fetches["asked_at"].diff().dropna().unique().tolist() == [5 * MINUTE]
    assert fetches["contracts"].tolist()[:2] == [126, 42]


@pytest.mark.usefixtures("inline")
def test_levels_are_in_force_from_the_bar_after_they_came(folder: Path) -> None:
    found = polled(folder, ChainMarket(), at(12, 2))
    levels = found.rows(HEDGE_LEVELS, HALF_DAY, SYMBOLS[0])
    levels = levels[levels["usable"].astype(bool)]
    assert set(levels["put_oi_wall"]) == {99.0} and set(levels["call_oi_wall"]) == {101.0}
    # a poll that did not sweep knows the other expirations from the sweep
    assert levels["contracts"].tolist() == [126] * len(levels)
    rows = found.rows(FEATURE_ROWS, HALF_DAY, SYMBOLS[0]).sort_values("bar_ts")
    first = levels["available_at"].min()
    known = rows["put_oi_wall_distance"].notna()
    assert known.tolist() == (rows["available_at"] >= first).tolist()
    assert known.sum() >= 9


@pytest.mark.usefixtures("inline")
def test_the_features_of_the_running_session_can_be_computed_again_bit_for_bit(
    folder: Path,
) -> None:
    """I2: the join asks what was available, not when it is asked."""
    found = polled(folder, ChainMarket(), at(14, 2))
    live = found.rows(FEATURE_ROWS, HALF_DAY)
    stages.build_features(found.deployment, HALF_DAY)
    pd.testing.assert_frame_equal(found.rows(FEATURE_ROWS, HALF_DAY), live)
    levels = found.rows(HEDGE_LEVELS, HALF_DAY)
    stages.build_levels(found.deployment, HALF_DAY)
    pd.testing.assert_frame_equal(found.rows(HEDGE_LEVELS, HALF_DAY), levels)


@pytest.mark.usefixtures("inline")
def test_the_ui_is_told_of_chains_and_levels_while_they_are_polled_and_when_they_are_closed(
    folder: Path,
) -> None:
    market = ChainMarket(chain_errors={"SIMB": [RateLimited("SIMB: 429")]})
    found = polled(folder, market, at(8, 2))
    stored, levels = (found.rows(table, HALF_DAY) for table in (OPTION_CHAINS, HEDGE_LEVELS))
    running = pictures.live(found.deployment, HALF_DAY, found.polls)
    closed = pictures.session(found.deployment, HALF_DAY)
    for told in (running, closed):
        assert told["option_chains"]["dagster/row_count"] == len(stored) > 0
        assert told["option_chains"]["snapshots"] == len(
            stored[["symbol", "as_of"]].drop_duplicates()
        )
        assert "1 rate_limited" in told["option_chains"]["requests"]
        assert told["hedge_levels"]["dagster/row_count"] == len(levels) > 0
        assert told["hedge_levels"]["usable_snapshots"] == levels["usable"].sum() > 0
    for asset, numbers in running.items():
        assert "dagster/row_count" in numbers, asset
        assert set(numbers) & {"coverage_pct", "lag_seconds"} <= set(closed[asset]), asset
    assert {"coverage_pct", "lag_seconds"} <= set(running["raw_quotes"])
    assert {"SIMA_gex_musd", "SIMA_levels", "SIMA_gamma_profile"} <= set(closed["hedge_levels"])


@pytest.mark.usefixtures("inline")
def test_a_running_loop_reads_every_snapshot_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all of them again for every new one would take longer and longer."""
    read: list[pd.Timestamp] = []

    def counted(chain: Chain, **others: Any) -> Snapshot:
        read.append(pd.Timestamp(chain.as_of))
        return gated(chain, **others)

    monkeypatch.setattr("hedge_pipeline.stages.levels.gated", counted)
    found = polled(folder, ChainMarket(), at(22, 2))
    stored = found.rows(OPTION_CHAINS, HALF_DAY)[["symbol", "as_of"]].drop_duplicates()
    assert len(stored) >= 4 * len(SYMBOLS)
    assert sorted(read) == sorted(stored["as_of"])


@pytest.mark.usefixtures("inline")
def test_a_snapshot_of_another_collector_in_between_is_read_in_its_place(folder: Path) -> None:
    found = polled(folder, ChainMarket(), at(8, 2))
    other = watch(folder, ChainMarket(), at(9)).deployment
    session = other.calendar.session(HALF_DAY)
    blank = ChainMarket(empty_interest=True).chains("SIMA", session, at(9), sweep=False)
    answer = chains.Fetched("SIMA", at(9), sweep=False, snapshots=blank)
    chains.store(other, HALF_DAY, answer, available_at=at(9))
    found.run(until=at(17, 2))
    rows = found.rows(HEDGE_LEVELS, HALF_DAY)
    assert rows["oi_reused"].sum() == 1 and rows["usable"].all()
    own = rows[rows["symbol"] == "SIMA"]
    assert own["as_of"].max() > own.loc[own["oi_reused"], "as_of"].max() > own["as_of"].min()
    stages.build_levels(other, HALF_DAY)
    pd.testing.assert_frame_equal(found.rows(HEDGE_LEVELS, HALF_DAY), rows)


def test_a_chain_that_hangs_costs_no_prediction(folder: Path) -> None:
    release = threading.Event()
    try:
        found = polled(folder, ChainMarket(chain_held=release), at(8, 2))
    finally:
        release.set()
    served = found.served(HALF_DAY)
    assert len(served) == 8 * len(SYMBOLS)
    assert set(served["mode"]) == {"live"}
    assert found.rows(OPTION_CHAINS, HALF_DAY).empty


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RateLimited("SIMA: 429"), "rate_limited"),
        (SourceDown("SIMA: down"), "source_down"),
        (ValueError("broken plug-in"), "source_down"),
    ],
)
def test_a_chain_that_fails_is_recorded_and_predictions_go_on_without_levels(
    folder: Path, error: SourceError | ValueError, status: str
) -> None:
    market = ChainMarket(chain_errors={"SIMA": [error]})
    found = polled(folder, market, at(4, 2))
    (fetch,) = found.rows(CHAIN_FETCHES, HALF_DAY, "SIMA").to_dict("records")
    assert fetch["status"] == status
    assert str(error) in fetch["detail"]
    served = found.served(HALF_DAY)
    own = served[served["symbol"] == "SIMA"]
    assert own["prediction"].notna().all() and len(own) == 4
    assert set(own["reason"]) == {f"{NO_LEVEL}: {NO_CHAIN}"}
    other = served[served["symbol"] == "SIMB"].sort_values("bar_ts")
    assert other["strength_score"].notna().tolist()[2:] == [True] * 2


@pytest.mark.usefixtures("inline")
def test_a_chain_without_open_interest_gives_no_levels_and_says_so(folder: Path) -> None:
    found = polled(folder, ChainMarket(empty_interest=True), at(4, 2))
    levels = found.rows(HEDGE_LEVELS, HALF_DAY, "SIMA")
    told = levels.loc[levels["contracts"] > 0, "unusable_reason"]
    assert told.str.contains("open interest is zero or missing").all() and len(told)
    reasons = found.served(HALF_DAY).sort_values("bar_ts")["reason"].tolist()
    assert "open interest is zero or missing" in reasons[-1]
    assert found.rows(FEATURE_ROWS, HALF_DAY)["put_oi_wall_distance"].isna().all()


@pytest.mark.usefixtures("inline")
def test_a_new_run_does_not_ask_again_before_it_is_time(folder: Path) -> None:
    polled(folder, ChainMarket(), at(3, 2))
    market = ChainMarket()
    watch(folder, market, at(4, 1)).run(until=at(5, 2), run_id="run-2")
    assert market.sweeps == {}
    watch(folder, market, at(7, 1)).run(until=at(8, 2), run_id="run-3")
    assert market.sweeps == {symbol: [False] for symbol in SYMBOLS}


@pytest.mark.usefixtures("inline")
def test_killed_between_chain_and_levels_the_next_run_computes_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stages, "build_missing_levels", lambda *_: 0)
        polled(folder, ChainMarket(), at(3, 2))
    found = watch(folder, ChainMarket(), at(4, 1))
    assert found.rows(HEDGE_LEVELS, HALF_DAY).empty
    found.run(until=at(5, 2), run_id="run-2")
    assert found.rows(HEDGE_LEVELS, HALF_DAY)["usable"].sum() == len(SYMBOLS)


class Killed(BaseException):
    """Nobody expects it."""


@pytest.mark.usefixtures("inline")
def test_an_answer_that_a_kill_has_lost_is_asked_for_again_with_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Store.append

    def killed(store: Store, table: Table, *given: Any, **more: Any) -> Any:
        if table is OPTION_CHAINS:
            raise Killed
        return append(store, table, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", killed)
        with pytest.raises(Killed):
            polled(folder, ChainMarket(), at(3, 2))
    market = ChainMarket()
    found = watch(folder, market, at(4, 1))
    assert found.rows(CHAIN_FETCHES, HALF_DAY)["status"].tolist() == ["ok"]
    assert found.rows(OPTION_CHAINS, HALF_DAY).empty
    found.run(until=at(5, 2), run_id="run-2")
    assert market.sweeps == {symbol: [True] for symbol in SYMBOLS}
    for symbol in SYMBOLS:
        assert len(found.rows(OPTION_CHAINS, HALF_DAY, symbol)) == 126


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("refusing", [CHAIN_FETCHES, OPTION_CHAINS, HEDGE_LEVELS])
def test_a_chain_for_which_there_is_no_room_is_stored_when_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refusing: Table
) -> None:
    """Every poll is reported meanwhile, and nothing is asked for again."""
    market = ChainMarket()
    found = watch(folder, market, at(1, 1))
    full = "the data folder cannot be written: No space left on device"
    append = Store.append

    def appended(store: Store, table: Table, *given: Any, **more: Any) -> Any:
        if table is refusing and at(2) <= found.clock.now < at(5):
            raise StoreError(full)
        return append(store, table, *given, **more)

    monkeypatch.setattr(Store, "append", appended)
    found.run(until=at(6, 2))
    assert found.warnings == [
        f"{full}; polling goes on",
        "the data folder takes what is polled again",
    ]
    assert market.sweeps == {symbol: [True, False] for symbol in SYMBOLS}
    assert sum(poll.bars for poll in found.polls) == 6 * len(SYMBOLS)
    for symbol in SYMBOLS:
        assert len(found.rows(OPTION_CHAINS, HALF_DAY, symbol)) == 126
        assert found.rows(HEDGE_LEVELS, HALF_DAY, symbol)["usable"].sum() == 1
        assert found.rows(CHAIN_FETCHES, HALF_DAY, symbol)["status"].tolist() == ["ok"]


@pytest.mark.usefixtures("inline")
def test_the_log_of_a_level_holds_its_parts(folder: Path) -> None:
    found = polled(folder, ChainMarket(), at(10, 2))
    log = found.rows(PREDICTION_LOG, HALF_DAY)
    known = log[log["strength_score"].notna()]
    assert len(known)
    parts = known[[x for x in known.columns if x.startswith("strength_") and x.endswith("hp")]]
    assert (known["strength_score"] >= parts["strength_hp"].fillna(0) - 1e-3).all()
    assert known["strength_missing"].str.contains("gex").all()  # fewer than 20 snapshots
    assert PREDICTION_LOG.violations(log) == {}
