"""Tells whoever gets the alerts why the service ends; run by the keeper, which knows no alerts."""

from __future__ import annotations

import datetime as dt
import sys

from hedge_pipeline import health
from hedge_pipeline.health import Trouble
from hedge_pipeline.opening import open_deployment, open_notifier
from hedge_pipeline.settings import load_settings
from hedge_pipeline.store import StoreError

NAME = "the service has ended"


def tell(why: str) -> None:
    """Sends one alert; whatever starts the service again and again sends no second one for hours.

    Args:
        why: one line.
    """
    settings = load_settings()
    deployment, notifier = open_deployment(settings), open_notifier(settings)
    now, every = deployment.clock(), dt.timedelta(hours=settings.alert_repeat_hours)
    new = health.untold(deployment.store, [Trouble(NAME, why, grave=True)], now, every)
    if not new or not notifier:
        return
    if any(delivery.ok for delivery in notifier.send(why, f"hedge_pipeline: {NAME}")):
        try:
            health.mark_told(deployment.store, new, now, every)
        except StoreError as error:  # a service on such a disk is not started again
            print(error, file=sys.stderr)


if __name__ == "__main__":
    tell(sys.argv[1])
