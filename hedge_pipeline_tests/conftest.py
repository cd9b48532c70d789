"""What several test rooms share: the calendar, the real data, and how hypothesis runs."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from hedge_pipeline.market.calendar import SessionCalendar

# the same code gives the same answer; `--hypothesis-profile=search` looks for new examples
hypothesis.settings.register_profile("hedge", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=500)
hypothesis.settings.load_profile("hedge")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker ends long before the last one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def calendar() -> SessionCalendar:
    """The New York calendar with one-minute bars."""
    return SessionCalendar()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real market data beside the checkout, or where HEDGE_TEST_DATA says."""
    named = os.environ.get("HEDGE_TEST_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real market data is not part of the project")
    return folder
