"""Does a search for hyper-parameters adopt luck, and does it find what is there?

Searches on simulated worlds by the product's own code. On noise nothing is worth adopting; with an
edge the defaults may be beaten. Shown is what chose the best trial beside what confirmed it.

    python -m benchmarks.searches --worlds NOISE,EDGE56X --runs 8 --sessions 45
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.guard_sabotage import world_in
from hedge_pipeline import stages

COLUMNS = ("defaults, choosing", "best, choosing", "defaults, confirming", "best, confirming")


def main() -> None:
    """One row per search; gains in 1e-4 nats per label."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", default="NOISE,EDGE56X")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--sessions", type=int, default=45)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    names = tuple(f"{world}{run}" for world in given.worlds.split(",") for run in range(given.runs))
    table = Table(title=f"{given.trials} trials, 1e-4 nats per label", title_justify="left")
    for name in ("market", *COLUMNS, "difference", "adopted"):
        table.add_column(name)
    with tempfile.TemporaryDirectory() as folder:
        deployment = world_in(Path(folder), names, given.sessions, given.seed)
        for name in names:
            record = stages.search_hyperparameters(deployment, name, trials=given.trials).record
            chosen, confirmed, defaults, difference = (
                record.scores[x] for x in ("chosen", "confirmed", "defaults", "difference")
            )
            table.add_row(
                name,
                *(
                    f"{x:+.1f}"
                    for x in (
                        record.tried[0]["gain"],
                        chosen["gain"],
                        defaults["gain"],
                        confirmed["gain"],
                    )
                ),
                f"{difference['gain']:+.1f} ({difference['lo']:+.1f}, {difference['hi']:+.1f})",
                "yes" if record.adopted else "no",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
