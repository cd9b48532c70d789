"""What a candidate must pass before it may predict. Each guard answers None or the reason.

They catch broken artefacts and broken serving, not weak models: an honest fit passes them all, and
whether it is any good is for the evidence to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hedge_pipeline.learning.dataset import TrainingSet
from hedge_pipeline.learning.training import Margins, ModelCard, skill_in_nats

PARITY_TOLERANCE = 1e-6
WIDEST_SPREAD = 3.0


def guard(
    card: ModelCard,
    logged: Margins,
    trained: Margins,
    data: TrainingSet,
    base_rate: float | npt.NDArray[np.float64],
    earlier_spreads: Sequence[float],
) -> str | None:
    """Why the candidate may not predict, None if it may.

    Args:
        card: the candidate's description.
        logged: its margins on the recent rows, made the way the log gets them: the file loaded
            back, the rows read from the features table.
        trained: the trainer's own margins on the same rows.
        data: the training rows; the guards look at the recent sessions.
        base_rate: climatology in force, for the in-sample check; by row if it differs.
        earlier_spreads: margin spreads of the last accepted candidates.
    """
    if tuple(card.features) != tuple(data.names):
        return "schema: the model's features are not the features table's"
    labels = data.labels[data.recent]
    if len(np.unique(data.labels)) < 2:
        return "classes: training rows have one outcome only"
    if len(logged) != len(trained):
        return f"parity: {len(logged)} rows are served of {len(trained)} that were trained on"
    if not np.isfinite(logged).all():
        return "finite: a margin is not a finite number"
    worst = float(np.max(np.abs(logged - trained), initial=0.0))
    if worst > PARITY_TOLERANCE:
        return f"parity: served margins differ from the trainer's by up to {worst:.2g}"
    skill = skill_in_nats(logged, labels, base_rate)
    if not skill > 0:
        return f"in-sample: worse than the base rate on its own rows ({skill:+.4f} nats)"
    spread = float(np.std(logged))
    if spread == 0:
        return "spread: the model says the same of every row"
    if len(earlier_spreads) >= 3 and spread > WIDEST_SPREAD * float(np.median(earlier_spreads)):
        return f"spread: {spread:.3f}, more than {WIDEST_SPREAD:g} times the usual"
    return None
