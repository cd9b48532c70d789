"""Lines a person can follow on standard error, and an error in one line.

Knows neither Dagster nor the command line, which both use it.
"""

from __future__ import annotations

import logging
import sys

# what a request was signed with, and every step of a new database, is nobody's business
_QUIET = ("botocore", "aiobotocore", "alembic")


def follow(level: str) -> None:
    """Sends what is logged from now on to standard error, unless somebody takes it already.

    Args:
        level: LOG_LEVEL; libraries that tell too much of themselves only warn whatever it is.
    """
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def first_line(error: BaseException) -> str:
    """What an error says in its first line; its type if it says nothing."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
