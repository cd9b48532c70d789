"""A service of real processes whose wall clock a test moves."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from hedge_pipeline.market.tables import FEATURE_ROWS, OUTCOMES, PREDICTION_LOG, RAW_QUOTES
from hedge_pipeline_tests.markets import MINUTE, stored_twice
from hedge_pipeline_tests.replays import hedge
from hedge_pipeline_tests.test_service import Service

CLOCK = Path(__file__).with_name("clock.c")


def clock_library(folder: Path) -> Path:
    """What moves the clock of every process it is loaded into; skips who cannot build it."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("clocks of real processes are moved by a library of C for Linux")
    made = folder / "clock.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", made, CLOCK, "-ldl"], check=True)
    return made


@dataclass
class Moved(Service):
    """A service whose wall clock the test moves; its other clocks go as ever.

    Attributes:
        library: loaded into every process, see clock.c.
        further: variables.
    """

    library: Path = Path()
    further: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        clock = {"LD_PRELOAD": str(self.library), "HEDGE_TEST_CLOCK": str(self._clock)}
        return {**super().variables, **clock, **self.further}

    @property
    def _clock(self) -> Path:
        return self.data / "clock"

    @property
    def _seconds(self) -> int:
        return int.from_bytes(self._clock.read_bytes(), sys.byteorder, signed=True)

    def now(self) -> pd.Timestamp:
        return pd.Timestamp.now("UTC") + dt.timedelta(seconds=self._seconds)

    def move(self, by: dt.timedelta) -> None:
        """Its clock jumps."""
        seconds = self._seconds if self._clock.exists() else 0
        moved = seconds + round(by.total_seconds())
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(moved.to_bytes(8, sys.byteorder, signed=True))

    def set_clock(self, to: pd.Timestamp) -> None:
        now = self.now() if self._clock.exists() else pd.Timestamp.now("UTC")
        self.move(to - now)

    def bars_until(self) -> pd.Timestamp:
        """End of the last bar that has a served prediction."""
        rows = self.live_rows()
        return (
            pd.Timestamp(rows["bar_ts"].max()) + MINUTE if len(rows) else pd.Timestamp(0, tz="UTC")
        )

    def predictions(self) -> pd.DataFrame:
        return self.store.read(PREDICTION_LOG)

    def assert_kept(self, before: pd.DataFrame) -> None:
        """What was recorded is there as it was."""
        kept = self.predictions().merge(before[list(PREDICTION_LOG.key)])
        pd.testing.assert_frame_equal(kept, before)

    @contextlib.contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.from_config(str(self.data / "dagster_home")) as instance:
            yield instance

    def sensor_looks(self) -> dict[float, str]:
        """When the retraining sensor has looked, and why it asked for nothing."""
        with self.instance() as instance:
            for state in instance.all_instigator_state():
                if state.instigator_name == "retraining_sensor":
                    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id)
                    return {x.timestamp: x.skip_reason or "" for x in ticks}
        return {}

    def health(self) -> dict[str, Any]:
        said = hedge("health", "--json", cwd=Path("/"), **self.variables)
        found: dict[str, Any] = json.loads(said.stdout)
        assert found["healthy"] is (said.returncode == 0)
        return found

    def assert_nothing_is_missing_or_doubled(self) -> None:
        self.assert_no_minute_is_missing_or_doubled()
        tables = (RAW_QUOTES, FEATURE_ROWS, PREDICTION_LOG, OUTCOMES)
        assert stored_twice(self.data, tables) == {}
