"""What became of the signals, scored as the trades they asked for."""

import dagster as dg

from hedge_pipeline.assets.model_performance import model_performance
from hedge_pipeline.assets.outcomes import outcomes
from hedge_pipeline.assets.prediction_log import prediction_log
from hedge_pipeline.assets.reporting import plain_failures
from hedge_pipeline.assets.trained_model import ALL_SESSIONS
from hedge_pipeline.partitions import SYMBOLS
from hedge_pipeline.resources.loop import LoopResource


@dg.asset(
    partitions_def=SYMBOLS,
    group_name="learning",
    owners=["team:trading"],
    kinds={"mlflow"},
    deps=[
        model_performance,
        dg.AssetDep(prediction_log, partition_mapping=ALL_SESSIONS),
        dg.AssetDep(outcomes, partition_mapping=ALL_SESSIONS),
    ],
)
def signal_report(
    context: dg.AssetExecutionContext, loop: LoopResource
) -> dg.MaterializeResult[None]:
    """Win rate, profit factor and false positives of the signals, and how reliable confidence is.

    Returns in percent of the entry price after costs; intervals resample whole sessions.
    """
    from hedge_pipeline import stages
    from hedge_pipeline.assets import pictures

    symbol = context.partition_key
    with plain_failures():
        found = stages.signal_report(loop.deployment, symbol)
        registry = loop.registry.open()
        published = pictures.publish_signals(registry, loop.deployment, symbol, found)
    return dg.MaterializeResult(metadata={**pictures.signals(symbol, found), "mlflow": published})
