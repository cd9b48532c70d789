"""Checks of the session tables: blocking claims, each wrapped for Dagster, and one warning."""

import dagster as dg

from hedge_pipeline.resources.loop import LoopResource

RECENT_SESSIONS = 20


def _sessions_of_the_run(context: dg.AssetCheckExecutionContext, loop: LoopResource) -> list[str]:
    """The run's sessions; for a check started on its own, the newest stored ones that are over.

    In one that goes on, bars are still to come and polls are storing what belongs to them.
    """
    from hedge_pipeline.market.tables import RAW_QUOTES
    from hedge_pipeline.stages import SETTLING

    if context.has_partition_key or context.has_partition_key_range:
        return list(context.partition_keys)
    deployment = loop.deployment
    newest = deployment.store.sessions(RAW_QUOTES, last=RECENT_SESSIONS)
    over = deployment.clock() - SETTLING
    return [x for x in newest if deployment.calendar.session(x).closes <= over]


def _claim(asset: str, name: str, counted_by: str, broken_by: str) -> dg.AssetChecksDefinition:
    """A blocking check that fails with the number of rows that break the claim.

    Args:
        asset: whose rows.
        name: the claim.
        counted_by: function of `checks/claims.py` that counts offending rows of a session.
        broken_by: what an offending row is, in words.
    """

    @dg.asset_check(asset=asset, name=name, blocking=True, description=f"Broken by {broken_by}.")
    def check(context: dg.AssetCheckExecutionContext, loop: LoopResource) -> dg.AssetCheckResult:
        from hedge_pipeline.checks import claims

        count = getattr(claims, counted_by)
        labels = _sessions_of_the_run(context, loop)
        found = {label: count(loop.deployment, label) for label in labels}
        broken = [f"{label}: {number} rows" for label, number in found.items() if number]
        return dg.AssetCheckResult(
            passed=not broken,
            description=", ".join(broken) or None,
            metadata={"offending_rows": sum(found.values()), "sessions": len(found)},
        )

    return check


quotes_keep_their_schema = _claim(
    "raw_quotes", "quotes_keep_their_schema", "misshapen_quotes", "rows outside the schema"
)
quotes_cover_the_session = _claim(
    "raw_quotes",
    "quotes_cover_the_session",
    "uncovered_minutes",
    "expected minutes that are neither bar nor gap, or both",
)
quotes_are_plausible = _claim(
    "raw_quotes",
    "quotes_are_plausible",
    "implausible_bars",
    "bars whose range does not hold open and close, or that lie outside the session",
)
chains_keep_their_schema = _claim(
    "option_chains", "chains_keep_their_schema", "misshapen_chains", "rows outside the schema"
)
chains_are_not_known_before_their_time = _claim(
    "option_chains",
    "chains_are_not_known_before_their_time",
    "hasty_snapshots",
    "contracts available before the moment they describe",
)
levels_keep_their_schema = _claim(
    "hedge_levels", "levels_keep_their_schema", "misshapen_levels", "rows outside the schema"
)
levels_say_why_they_are_missing = _claim(
    "hedge_levels",
    "levels_say_why_they_are_missing",
    "unexplained_levels",
    "rows unusable without a reason, or usable with one",
)
levels_lie_on_their_side_of_the_price = _claim(
    "hedge_levels",
    "levels_lie_on_their_side_of_the_price",
    "misplaced_levels",
    "a support above or a resistance below the spot",
)
features_keep_their_schema = _claim(
    "features", "features_keep_their_schema", "misshapen_features", "rows outside the schema"
)
features_have_no_future_rows = _claim(
    "features",
    "features_have_no_future_rows",
    "rows_from_the_future",
    "rows without their bar, or available before it",
)
features_exist_for_every_bar = _claim(
    "features", "features_exist_for_every_bar", "bars_without_features", "bars without a row"
)
predictions_keep_their_schema = _claim(
    "prediction_log",
    "predictions_keep_their_schema",
    "misshapen_predictions",
    "rows outside the schema",
)
predictions_are_made_once = _claim(
    "prediction_log",
    "predictions_are_made_once",
    "doubled_predictions",
    "bars with two served predictions",
)
predictions_name_a_registered_model = _claim(
    "prediction_log",
    "predictions_name_a_registered_model",
    "unknown_models",
    "predictions by a version that no verdict accepted",
)
predictions_wait_for_their_bar = _claim(
    "prediction_log",
    "predictions_wait_for_their_bar",
    "hasty_decisions",
    "predictions decided before their bar had ended",
)
outcomes_keep_their_schema = _claim(
    "outcomes", "outcomes_keep_their_schema", "misshapen_outcomes", "rows outside the schema"
)
outcomes_come_from_observed_prices = _claim(
    "outcomes",
    "outcomes_come_from_observed_prices",
    "invented_outcomes",
    "outcomes that the observed closes do not give",
)


@dg.asset_check(asset="prediction_log")
def most_bars_are_like_the_training_data(
    context: dg.AssetCheckExecutionContext, loop: LoopResource
) -> dg.AssetCheckResult:
    """At most a tenth of a session's bars abstain as unlike the training data.

    More are a change of the market or of the feed. A warning: the bars abstained, nothing is wrong
    with what was stored.
    """
    from hedge_pipeline.checks import claims
    from hedge_pipeline.learning.novelty import MOST_NOVEL

    shares = {
        x: claims.novel_share(loop.deployment, x) for x in _sessions_of_the_run(context, loop)
    }
    above = [f"{label}: {share:.0%}" for label, share in shares.items() if share > MOST_NOVEL]
    return dg.AssetCheckResult(
        passed=not above,
        severity=dg.AssetCheckSeverity.WARN,
        description=", ".join(above) or None,
        metadata={"highest_share_pct": round(100 * max(shares.values(), default=0.0), 2)},
    )
