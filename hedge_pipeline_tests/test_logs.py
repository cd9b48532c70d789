"""What is followed on standard error tells nothing that must stay secret."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hedge_pipeline.logs import first_line
from hedge_pipeline_tests.replays import environment

FOLLOWED = """
import logging, sys
from hedge_pipeline.logs import follow

follow("DEBUG")
assert not {"dagster", "typer"} & set(sys.modules)
for name in ("hedge_pipeline.live.loop", "botocore.auth", "aiobotocore.regions", "alembic"):
    logging.getLogger(name).debug("a detail of %s", name)
    logging.getLogger(name).warning("a warning of %s", name)
"""


def test_a_run_that_is_followed_in_detail_shows_no_signed_request() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOLLOWED],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = [line.split(" ", 2)[2] for line in done.stderr.splitlines()]
    assert said == [
        "DEBUG a detail of hedge_pipeline.live.loop",
        "WARNING a warning of hedge_pipeline.live.loop",
        "WARNING a warning of botocore.auth",
        "WARNING a warning of aiobotocore.regions",
        "WARNING a warning of alembic",
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("\nno disk\nat line 3"), "no disk"),
        (ValueError(" bad "), "bad"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_is_told_in_one_line(error: Exception, words: str) -> None:
    assert first_line(error) == words
