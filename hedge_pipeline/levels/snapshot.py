"""From one option-chain snapshot to one row of hedge levels.

The order of things, nothing else: borrow, gate, compute. What is computed is defined in the
modules of this room.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass

from hedge_pipeline.levels.chain import (
    Chain,
    blank_reason,
    complete,
    unusable_reason,
    with_open_interest_of,
)
from hedge_pipeline.levels.context import context
from hedge_pipeline.levels.exposure import exposure
from hedge_pipeline.levels.gaps import DailyBars, half_gaps
from hedge_pipeline.levels.rules import DEFAULT_RULES, LevelRules
from hedge_pipeline.levels.walls import front_hedges, monthly_hedges

GAP_LEVELS = ("hg_below", "hg_above")
CHAIN_LEVELS = (
    "hp_support",
    "hp_resistance",
    "hp_net",
    "mhp_support",
    "mhp_resistance",
    "mhp_score",
    "gex",
    "gex_ex_front",
    "gex_gross",
    "vanna_exposure",
    "gamma_flip",
    "call_oi_wall",
    "put_oi_wall",
    "max_gamma_strike",
    "put_call_oi_ratio",
    "atm_iv",
    "skew_25d",
    "term_slope",
)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A chain that was gated and completed.

    Attributes:
        chain: contracts the levels are computed from. Once usable, it is what the next snapshot
            of the session may borrow from.
        available_at: aware time of fetching, the first moment a live system could have it.
        spot: price of the underlying at `chain.as_of`, in quote currency; NaN = unknown.
        unusable_reason: why no level may be computed, None if usable.
        oi_reused: the open interest is an earlier snapshot's. False where nothing was borrowed,
            also when the earlier one only added expirations.
    """

    chain: Chain
    available_at: dt.datetime
    spot: float
    unusable_reason: str | None
    oi_reused: bool

    @property
    def usable(self) -> bool:
        """Whether levels may be computed."""
        return self.unusable_reason is None


def gated(
    chain: Chain,
    *,
    available_at: dt.datetime,
    spot: float,
    earlier: Chain | None = None,
    rules: LevelRules = DEFAULT_RULES,
) -> Snapshot:
    """Borrows what a snapshot lacks from an earlier one, and says whether it is usable.

    The snapshot itself must have contracts: one that came back empty is not replaced by an earlier
    one. If more than half of its contracts near the spot have no open interest, that of the
    earlier snapshot is used. Then the expirations it did not ask for are added. The gate looks at
    the whole, and at the open interest of the snapshot's own contracts.

    Args:
        chain: the snapshot as it was fetched; its `as_of` is the time of fetching less the source's
            delay.
        available_at: aware time of fetching.
        spot: price of the underlying at `chain.as_of`; NaN or anything not positive = unknown.
        earlier: chain of the last usable `Snapshot` of the same session, None if there is none.
        rules: thresholds.

    Raises:
        ValueError: a time without a zone, a snapshot available before its own time, or an earlier
            one of another session.
    """
    if available_at.tzinfo is None or available_at < chain.as_of:
        raise ValueError(f"a snapshot of {chain.as_of} cannot be available at {available_at}")
    spot = float(spot) if 0 < spot < float("inf") else float("nan")
    whole, reused = chain, False
    if earlier is not None and len(chain):
        if blank_reason(chain, spot, rules):
            chain, reused = with_open_interest_of(chain, earlier), True
        whole = complete(chain, earlier)
    # the expirations added must not hide that the snapshot's own are blank
    reason = unusable_reason(whole, spot, available_at, rules) or blank_reason(chain, spot, rules)
    return Snapshot(whole, available_at, spot, reason, reused and reason is None)


def row_of(
    snapshot: Snapshot, *, daily: DailyBars, rules: LevelRules = DEFAULT_RULES
) -> dict[str, object]:
    """One row of hedge levels of a gated snapshot.

    Args:
        snapshot: from `gated`.
        daily: completed sessions before the one of the snapshot.
        rules: constants, the same as in `gated`.

    Returns:
        as_of, available_at: aware times. spot, the levels of `GAP_LEVELS` and `CHAIN_LEVELS`:
        floats, NaN = unknown or none. gamma_flip_count: sign changes, None = unknown. contracts:
        number in the chain. usable, unusable_reason (None if usable) and oi_reused. Without a
        usable chain every level of `CHAIN_LEVELS` is NaN; half gaps do not depend on it.
    """
    chain, spot = snapshot.chain, snapshot.spot
    gaps = half_gaps(daily, spot, rules)
    levels: dict[str, object] = dict.fromkeys(CHAIN_LEVELS, float("nan"))
    levels["gamma_flip_count"] = None
    if snapshot.usable:
        levels |= _chain_levels(chain, spot, rules)
    return {
        "as_of": chain.as_of,
        "available_at": snapshot.available_at,
        "spot": spot,
        "hg_below": gaps.below,
        "hg_above": gaps.above,
        **levels,
        "contracts": len(chain),
        "usable": snapshot.usable,
        "unusable_reason": snapshot.unusable_reason,
        "oi_reused": snapshot.oi_reused,
    }


def _chain_levels(chain: Chain, spot: float, rules: LevelRules) -> dict[str, object]:
    front, monthly = front_hedges(chain, spot, rules), monthly_hedges(chain, spot, rules)
    dealers, described = exposure(chain, spot, rules), context(chain, spot, rules)
    return {
        "hp_support": front.support,
        "hp_resistance": front.resistance,
        "hp_net": front.score,
        "mhp_support": monthly.support,
        "mhp_resistance": monthly.resistance,
        "mhp_score": monthly.score,
        "gex": dealers.gex,
        "gex_ex_front": dealers.gex_ex_front,
        "gex_gross": dealers.gex_gross,
        "vanna_exposure": dealers.vanna,
        "gamma_flip": dealers.flip,
        "gamma_flip_count": dealers.flip_count,
        **asdict(described),
    }
