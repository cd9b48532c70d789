"""Every stored table: its columns with units, its key, and the rule for two rows with one key.

A table is partitioned by session. The pandera schema and the Arrow schema come from the same
description. What is written in a row's `available_at` is the first moment a live system could
have known it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hedge_pipeline.market.features import FEATURES

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pandera

Kind = Literal["text", "time", "float", "float32", "integer", "small", "flag"]

_ARROW: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "time": pa.timestamp("us", tz="UTC"),
    "float": pa.float64(),
    "float32": pa.float32(),
    "integer": pa.int64(),
    "small": pa.int8(),
    "flag": pa.bool_(),
}
# threads take longer to begin than so many rows to convert
_FEW_ROWS = 50_000
_FEW_CODES = 5_000
_PANDAS: dict[Kind, str] = {
    "text": "str",
    "time": "datetime64[us, UTC]",
    "float": "float64",
    "float32": "float32",
    "integer": "Int64",
    "small": "Int8",
    "flag": "boolean",
}


@dataclass(frozen=True)
class Column:
    """One column: name, kind, meaning with unit, and what values are allowed.

    Attributes:
        name: as it is stored.
        kind: of its values.
        description: meaning with unit, and what NULL means.
        nullable: whether a value may be missing.
        least: smallest value allowed; None = any.
        most: largest value allowed; None = any.
        among: the texts allowed; empty = any.
    """

    name: str
    kind: Kind
    description: str
    nullable: bool = False
    least: float | None = None
    most: float | None = None
    among: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A stored table.

    Attributes:
        name: folder name.
        description: what a row is.
        columns: in stored order.
        key: columns that identify a row; the first row written for a key is the one that counts.
        first_by: of two rows with one key the one with the smaller value here came first.
        bulky: too large to be kept in memory or to be compared row by row when something is added;
            what is added at once is one file named after its keys, so adding it twice is harmless.
        summed_up: small, kept for ever and read over all sessions; the nightly job also writes its
            settled sessions into one file, see `Store.sum_up`.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    first_by: str | None = None
    bulky: bool = False
    summed_up: bool = False

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names in stored order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def arrow(self) -> pa.Schema:
        """The Arrow schema, with the table's schema hash in its metadata."""
        fields = [
            pa.field(column.name, _ARROW[column.kind], nullable=column.nullable)
            for column in self.columns
        ]
        return pa.schema(fields, metadata={"schema_hash": self.schema_hash})

    @cached_property
    def schema_hash(self) -> str:
        """Sixteen hex digits over the names and kinds of the columns."""
        text = ";".join(f"{column.name}:{column.kind}" for column in self.columns)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def empty(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """A frame without rows, with the table's columns, or some of them, and their dtypes."""
        return _empty(self, None if columns is None else tuple(columns)).copy(deep=False)

    @cached_property
    def _dtypes(self) -> list[Any]:
        return self.empty().dtypes.tolist()

    def conform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with exactly the table's columns and dtypes, in stored order.

        Raises:
            KeyError: a column is missing.
        """
        if tuple(frame.columns) != self.names:
            missing = [name for name in self.names if name not in frame.columns]
            if missing:
                raise KeyError(f"{self.name} lacks the columns {', '.join(missing)}")
            frame = frame[list(self.names)]
        found = frame
        for column, own, wanted in zip(
            self.columns, frame.dtypes.tolist(), self._dtypes, strict=True
        ):
            if own != wanted:  # `frame.astype` takes twice as long for a few rows
                found = frame.copy(deep=False) if found is frame else found
                found[column.name] = frame[column.name].array.astype(wanted)
        return found

    def in_arrow(self, frame: pd.DataFrame) -> pa.Table:
        """The rows of a frame that has the table's columns and dtypes, see `conform`.

        Raises:
            ValueError: a column that is never unknown holds an unknown value.
        """
        arrays = []
        for field, (_, column) in zip(self.arrow, frame.items(), strict=True):
            values: Any = column.array  # of a column as such Arrow would ask for more
            if column.dtype.kind == "M":
                values = column.to_numpy(dtype="datetime64[us]")
            elif column.dtype.kind == "f":
                values = column.to_numpy()
            arrays.append(self._array(values, field))
        return pa.Table.from_arrays(arrays, schema=self.arrow)

    def of_records(self, records: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Rows from values by column name; None, NaN, NaT and pandas.NA are unknown.

        Raises:
            KeyError: a record lacks a column.
            ValueError: a column that is never unknown holds an unknown value.
        """
        arrays = []
        for field in self.arrow:
            try:
                values = [record[field.name] for record in records]
            except KeyError:
                raise KeyError(f"{self.name} lacks the columns {field.name}") from None
            arrays.append(self._array(values, field))
        return pa.Table.from_arrays(arrays, schema=self.arrow)

    def _array(self, values: Any, field: pa.Field) -> pa.Array:
        array = pa.array(values, field.type, from_pandas=True)
        if array.null_count and not field.nullable:
            raise ValueError(f"{self.name}: {field.name} is unknown in {array.null_count} rows")
        return array

    def validator(self) -> pandera.DataFrameSchema:
        """The pandera schema, built on first use."""
        return _validator(self)

    def violations(self, frame: pd.DataFrame) -> dict[str, int]:
        """Number of offending rows by claim, empty if the frame keeps every promise."""
        import pandera.errors

        try:
            self.validator().validate(frame, lazy=True)
        except pandera.errors.SchemaErrors as error:
            cases = error.failure_cases
            names = cases["column"].fillna("rows").astype(str) + ": " + cases["check"].astype(str)
            return {str(name): int(count) for name, count in names.value_counts().items()}
        return {}


def in_pandas(rows: pa.Table) -> pd.DataFrame:
    """Stored rows as a frame with the dtypes of `Table.empty`."""
    threads = rows.num_rows > _FEW_ROWS
    frame: pd.DataFrame = rows.to_pandas(types_mapper=_extension_types().get, use_threads=threads)
    return frame


@lru_cache(maxsize=1)
def _extension_types() -> dict[pa.DataType, Any]:
    import pandas as pd

    return {
        pa.int64(): pd.Int64Dtype(),
        pa.int8(): pd.Int8Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }


@lru_cache(maxsize=256)
def _empty(table: Table, columns: tuple[str, ...] | None) -> pd.DataFrame:
    import pandas as pd

    names = table.names if columns is None else columns
    kinds = {column.name: column.kind for column in table.columns}
    return pd.DataFrame({name: pd.Series(dtype=_PANDAS[kinds[name]]) for name in names})


@lru_cache(maxsize=32)
def _validator(table: Table) -> pandera.DataFrameSchema:
    import pandera.pandas as pandera

    def checks(column: Column) -> list[Any]:
        found: list[Any] = []
        if column.least is not None:
            found.append(pandera.Check.ge(column.least, error=f"at least {column.least:g}"))
        if column.most is not None:
            found.append(pandera.Check.le(column.most, error=f"at most {column.most:g}"))
        if column.among:
            allowed = ", ".join(column.among)
            found.append(pandera.Check.isin(column.among, error=f"one of {allowed}"))
        return found

    return pandera.DataFrameSchema(
        {
            column.name: pandera.Column(
                _PANDAS[column.kind],
                checks(column),
                nullable=column.nullable,
                description=column.description,
            )
            for column in table.columns
        },
        unique=list(table.key),
        strict=True,
        name=table.name,
        description=table.description,
    )


_SYMBOL = Column("symbol", "text", "ticker symbol")
_BAR_TS = Column("bar_ts", "time", "start of the bar, UTC")
_AVAILABLE_AT = Column(
    "available_at", "time", "first moment a live system could have known the row, UTC"
)

RAW_QUOTES = Table(
    "raw_quotes",
    "Final bars of the session, frozen when first stored.",
    (
        _SYMBOL,
        _BAR_TS,
        Column("open", "float", "first trade, quote currency", least=1e-6),
        Column("high", "float", "highest trade, quote currency", least=1e-6),
        Column("low", "float", "lowest trade, quote currency", least=1e-6),
        Column("close", "float", "last trade, quote currency", least=1e-6),
        Column("volume", "float", "shares traded; NULL = unknown", nullable=True, least=0),
        Column("bid", "float", "best bid seen with the bar; NULL = unknown", nullable=True),
        Column("ask", "float", "best ask seen with the bar; NULL = unknown", nullable=True),
        Column("support", "float", "level below named by the source; NULL = none", nullable=True),
        Column(
            "resistance", "float", "level above named by the source; NULL = none", nullable=True
        ),
        Column("source", "text", "name of the market data source"),
        _AVAILABLE_AT,
        Column("ingested_at", "time", "when the row was written, UTC; simulated in a replay"),
    ),
    key=("symbol", "bar_ts"),
    first_by="available_at",
)

GAP_CAUSES = ("source_down", "rate_limited", "vendor_hole", "late")

GAPS = Table(
    "gaps",
    "Expected minutes without a bar, each with its cause. Never filled with a value.",
    (
        _SYMBOL,
        _BAR_TS,
        Column("cause", "text", "why there is no bar", among=GAP_CAUSES),
        Column("detail", "text", "the source's own words; NULL = nothing to add", nullable=True),
    ),
    key=("symbol", "bar_ts"),
)

DAILY_BARS = Table(
    "daily_bars",
    "One bar per session that is over, frozen when first stored.",
    (
        _SYMBOL,
        Column("session", "text", "session of the bar"),
        Column("open", "float", "first trade, quote currency", least=1e-6),
        Column("high", "float", "highest trade, quote currency", least=1e-6),
        Column("low", "float", "lowest trade, quote currency", least=1e-6),
        Column("close", "float", "last trade, quote currency", least=1e-6),
        Column("volume", "float", "shares traded; NULL = unknown", nullable=True, least=0),
        _AVAILABLE_AT,
    ),
    key=("symbol", "session"),
    first_by="available_at",
)

OPTION_CHAINS = Table(
    "option_chains",
    "Snapshots of option chains as they were fetched; one row per contract and snapshot.",
    (
        _SYMBOL,
        Column("expiry", "text", "expiration date, YYYY-MM-DD; the series ends at 16:00 New York"),
        Column("strike", "float", "strike price, quote currency", least=1e-6),
        Column("right", "text", "call or put", among=("C", "P")),
        Column("as_of", "time", "moment the data describe: fetch less the source's delay, UTC"),
        _AVAILABLE_AT,
        Column("open_interest", "float", "open contracts; NULL = unknown", nullable=True, least=0),
        Column(
            "volume",
            "float",
            "contracts traded in the session; NULL = unknown",
            nullable=True,
            least=0,
        ),
        Column(
            "implied_volatility",
            "float",
            "per year, 0.2 = 20 %; NULL = unknown",
            nullable=True,
            least=0,
        ),
        Column("bid", "float", "quote currency; NULL = unknown", nullable=True, least=0),
        Column("ask", "float", "quote currency; NULL = unknown", nullable=True, least=0),
        Column(
            "last", "float", "last trade, quote currency; NULL = unknown", nullable=True, least=0
        ),
    ),
    key=("symbol", "expiry", "strike", "right", "as_of"),
    first_by="available_at",
    bulky=True,
)

FETCH_STATUS = (
    "ok",
    "nothing_new",
    "no_data_yet",
    "rate_limited",
    "source_down",
    "symbol_unknown",
    "window_refused",
    "schema_drift",
    "bad_input",
)

CHAIN_FETCHES = Table(
    "chain_fetches",
    "Every request for an option chain, with what came of it.",
    (
        _SYMBOL,
        Column("asked_at", "time", "moment of asking, UTC"),
        Column("status", "text", "what came of it", among=FETCH_STATUS),
        Column("sweep", "flag", "whether every expiration was asked for"),
        Column("snapshots", "integer", "snapshots that were new", least=0),
        Column("contracts", "integer", "contracts in them", least=0),
        Column("detail", "text", "the source's own words; NULL = nothing to add", nullable=True),
    ),
    key=("symbol", "asked_at"),
)


def _level(name: str, description: str) -> Column:
    return Column(name, "float", f"{description}; NULL = none or unknown", nullable=True)


HEDGE_LEVELS = Table(
    "hedge_levels",
    "Dealer hedge levels of every snapshot. GEX is a volatility regime (positive damps, negative "
    "amplifies moves), not a direction.",
    (
        _SYMBOL,
        Column("as_of", "time", "moment the snapshot describes, UTC"),
        _AVAILABLE_AT,
        _level("spot", "close of the last bar final at as_of, quote currency"),
        _level("hp_support", "put wall of the front expiration at or below spot, quote currency"),
        _level("hp_resistance", "call wall of the front expiration at or above spot, same unit"),
        _level("hp_net", "balance of put walls below and call walls above spot, -1..1"),
        _level("mhp_support", "wall of the next four monthlies below spot, quote currency"),
        _level("mhp_resistance", "wall of the next four monthlies above spot, quote currency"),
        _level("mhp_score", "balance of the monthly walls weighted by nearness, -1..1"),
        _level("hg_below", "middle of the nearest open daily gap below spot, quote currency"),
        _level("hg_above", "middle of the nearest open daily gap above spot, quote currency"),
        _level("gex", "gamma exposure of dealers, dollars per 1 % move"),
        _level("gex_ex_front", "the same without the front expiration, dollars per 1 % move"),
        _level("gex_gross", "sum of the absolute exposures, dollars per 1 % move"),
        _level("vanna_exposure", "dollars of delta per volatility point"),
        _level("gamma_flip", "price at which re-priced GEX changes sign, nearest to spot"),
        Column(
            "gamma_flip_count",
            "integer",
            "sign changes within 10 % of spot; NULL = unknown",
            nullable=True,
            least=0,
        ),
        _level("call_oi_wall", "strike with the largest call open interest, quote currency"),
        _level("put_oi_wall", "strike with the largest put open interest, quote currency"),
        _level("max_gamma_strike", "strike with the largest gamma exposure, quote currency"),
        _level("put_call_oi_ratio", "put over call open interest"),
        _level(
            "atm_iv", "implied volatility at the money at 30 days, per year; NULL = out of reach"
        ),
        _level(
            "skew_25d", "volatility of the 25-delta put less that of the call at 30 days, per year"
        ),
        _level("term_slope", "at-the-money volatility at 60 days less that at 30 days, per year"),
        Column("contracts", "integer", "contracts of the snapshot that had not expired", least=0),
        Column("usable", "flag", "whether levels could be taken from the snapshot"),
        Column("unusable_reason", "text", "why not; NULL = usable", nullable=True),
        Column("oi_reused", "flag", "open interest is that of an earlier snapshot of the session"),
        Column("dealer_sign", "text", "assumed position of dealers, a heuristic setting"),
        Column(
            "gex_rank",
            "float",
            "share of the last 20 sessions' snapshots with a smaller absolute GEX, 0..1; "
            "NULL = fewer than 20 snapshots",
            nullable=True,
            least=0,
            most=1,
        ),
        Column(
            "vanna_rank",
            "float",
            "the same for the vanna exposure; NULL = fewer than 20 snapshots",
            nullable=True,
            least=0,
            most=1,
        ),
    ),
    key=("symbol", "as_of"),
    first_by="available_at",
)

FEATURE_ROWS = Table(
    "features",
    "The feature vector of every bar; NULL = not computable from what was available.",
    (
        _SYMBOL,
        _BAR_TS,
        _AVAILABLE_AT,
        *(
            Column(feature.name, "float32", feature.description, nullable=True)
            for feature in FEATURES
        ),
    ),
    key=("symbol", "bar_ts"),
    first_by="available_at",
)

ROLES = ("served", "newest", "baseline")
MODES = ("live", "catch_up", "backfill", "replay")


def _part(name: str, most: float, of: str) -> Column:
    return Column(
        f"strength_{name}",
        "float32",
        f"points for {of}, 0..{most:g}; NULL = unknown",
        nullable=True,
        least=0,
        most=most,
    )


PREDICTION_LOG = Table(
    "prediction_log",
    "What was predicted, when, by which model. A row never changes.",
    (
        _SYMBOL,
        _BAR_TS,
        Column("decided_at", "time", "moment of the decision, UTC"),
        Column("price", "float", "close of the bar, quote currency", least=1e-6),
        Column(
            "prediction", "small", "1 up, 0 down; NULL = abstained", nullable=True, least=0, most=1
        ),
        Column(
            "prob_up",
            "float",
            "trusted probability that the price is higher after the horizon; NULL = abstained",
            nullable=True,
            least=0,
            most=1,
        ),
        Column(
            "confidence",
            "float32",
            "probability of the predicted side; NULL = abstained",
            nullable=True,
            least=0,
            most=1,
        ),
        Column(
            "strength_score",
            "float32",
            "strength of the hedge levels, 0..100; NULL = no levels",
            nullable=True,
            least=0,
            most=100,
        ),
        Column(
            "level_type",
            "text",
            "side of the nearest hedge level",
            among=("support", "resistance", "none"),
        ),
        Column(
            "level_source", "text", "kind of that hedge level", among=("HP", "MHP", "HG", "none")
        ),
        Column(
            "level_price", "float", "that hedge level, quote currency; NULL = none", nullable=True
        ),
        _part("gex", 20, "the size of the gamma exposure"),
        _part("vanna", 15, "the size of the vanna exposure"),
        _part("hp", 10, "nearness to a front wall"),
        _part("mhp", 20, "nearness to a monthly wall"),
        _part("hg", 25, "nearness to a half gap"),
        _part("overlap", 10, "further levels beside the nearest"),
        Column("strength_missing", "text", "parts of the strength that are unknown, by name"),
        Column("signal_fired", "flag", "whether every signal rule held"),
        Column("reason", "text", "why no prediction was made, or which signal rule failed first"),
        Column(
            "model_version",
            "integer",
            "version of the model; 0 = there was none",
            least=0,
        ),
        Column("role", "text", "which stream the row belongs to", among=ROLES),
        Column("base_rate", "float", "climatology in force, probability of up", least=0, most=1),
        Column(
            "margin",
            "float32",
            "model log-odds above its own base rate, clipped to +-1; NULL = abstained",
            nullable=True,
            least=-1,
            most=1,
        ),
        Column("trust", "float", "shrink factor of the margin, 0..1", least=0, most=1),
        Column("skill", "text", "state of the evidence", among=("unproven", "proven", "lost")),
        Column("mode", "text", "how the row came about", among=MODES),
        Column("schema_hash", "text", "hash of the features table's schema"),
    ),
    key=("symbol", "bar_ts", "model_version", "role"),
    first_by="decided_at",
)

UNLABELABLE = ("crosses_close", "gap", "halted")

OUTCOMES = Table(
    "outcomes",
    "What the price really did within the horizon; from observed closes of one session only.",
    (
        _SYMBOL,
        _BAR_TS,
        Column("horizon_bars", "integer", "label horizon, bars", least=1),
        Column("entry_price", "float", "close of the bar, quote currency", least=1e-6),
        Column(
            "exit_price",
            "float",
            "close of the bar at the horizon; NULL = unlabelable",
            nullable=True,
            least=1e-6,
        ),
        Column("return_pct", "float", "exit over entry minus 1, percent", nullable=True),
        Column(
            "actual_direction",
            "small",
            "1 up, 0 down; NULL = flat or unlabelable",
            nullable=True,
            least=0,
            most=1,
        ),
        Column("status", "text", "what became of it", among=("up", "down", "flat", "unlabelable")),
        Column(
            "reason", "text", "why unlabelable; NULL otherwise", nullable=True, among=UNLABELABLE
        ),
        Column("available_at", "time", "when the outcome could first be known, UTC"),
    ),
    key=("symbol", "bar_ts", "horizon_bars"),
    first_by="available_at",
)

PROMOTIONS = Table(
    "promotions",
    "Append-only log of every evidence fold, every verdict on a candidate, and every override.",
    (
        _SYMBOL,
        Column("session", "text", "session folded last when the entry was made"),
        Column(
            "kind",
            "text",
            "fold of a session, verdict on a candidate, or override by an operator",
            among=("fold", "verdict", "override"),
        ),
        Column(
            "model_version",
            "integer",
            "candidate of a verdict, version pinned or let go by an override; 0 for a fold",
            least=0,
        ),
        Column("number", "integer", "overrides count 1, 2, ...; 0 for folds and verdicts", least=0),
        Column("decided_at", "time", "from when on the entry is in force, UTC"),
        Column(
            "event",
            "text",
            "skill_proven, skill_lost, promote, hold, reject, pin, unpin; NULL = nothing",
            nullable=True,
        ),
        Column("reason", "text", "the entry in words"),
        Column(
            "skill",
            "text",
            "state of the evidence after the entry",
            among=("unproven", "proven", "lost"),
        ),
        Column("era", "integer", "number of times skill was lost", least=0),
        Column("evidence", "float", "natural log of the evidence E; proven at log 20 = 3.0"),
        Column("peak", "float", "highest log evidence since skill was proven"),
        Column("trust", "float", "shrink factor of the margin, 0..1", least=0, most=1),
        Column("base_rate", "float", "climatology for the next session", least=0, most=1),
        Column(
            "labels", "integer", "matured labels of the session that count as evidence", least=0
        ),
        Column("effective_labels", "float", "labels over the horizon (overlap-adjusted)", least=0),
        Column("state", "text", "the whole evidence state, JSON"),
    ),
    key=("symbol", "session", "kind", "model_version", "number"),
    first_by="decided_at",
    summed_up=True,
)

PERFORMANCE = Table(
    "performance",
    "Accuracy of every model version on real outcomes, by session and role.",
    (
        _SYMBOL,
        Column("session", "text", "session of the predictions"),
        Column("model_version", "integer", "version of the model; 0 = there was none", least=0),
        Column("role", "text", "which stream", among=ROLES),
        Column("mode", "text", "how the predictions came about", among=MODES),
        Column("predictions", "integer", "rows of the log, abstentions excluded", least=0),
        Column("abstentions", "integer", "rows without a prediction", least=0),
        Column("labels", "integer", "predictions with an up or down outcome", least=0),
        Column("hits", "integer", "predictions whose direction was right", least=0),
        Column("base_hits", "integer", "hits of always saying what climatology says", least=0),
        Column("log_loss", "float", "sum over labels for the trusted probability, nats", least=0),
        Column("base_log_loss", "float", "the same for climatology", least=0),
        Column("raw_log_loss", "float", "the same for the unshrunk model", least=0),
        Column("brier", "float", "sum of squared probability errors", least=0),
        Column("spread", "float", "standard deviation of the trusted probability", least=0),
    ),
    key=("symbol", "session", "model_version", "role", "mode"),
    summed_up=True,
)

_LEVEL_TYPES = ("support", "resistance", "all")
_LEVEL_SOURCES = ("HP", "MHP", "HG", "all")

LEVEL_EVIDENCE = Table(
    "level_evidence",
    "What the price did at hedge levels, by session and kind of level; moves the confidence.",
    (
        _SYMBOL,
        Column("session", "text", "session of the outcomes"),
        Column("level_type", "text", "side of the level; all = every bar", among=_LEVEL_TYPES),
        Column("level_source", "text", "kind of the level; all = every bar", among=_LEVEL_SOURCES),
        Column("strength_band", "text", "band of the strength score; all = every bar"),
        Column("labels", "integer", "up or down outcomes", least=1),
        Column("ups", "integer", "those that were up", least=0),
        Column("effective_labels", "float", "labels over the horizon", least=0),
        Column("effective_ups", "float", "ups over the horizon", least=0),
    ),
    key=("symbol", "session", "level_type", "level_source", "strength_band"),
)

EXITS = ("target", "stop", "time", "unscorable")

TRADES = Table(
    "trades",
    "Signals scored as the trades they ask for, from observed bars.",
    (
        _SYMBOL,
        Column("session", "text", "session of the signal"),
        _BAR_TS,
        Column("side", "text", "long at support, short at resistance", among=("long", "short")),
        Column("level_source", "text", "kind of the level", among=("HP", "MHP", "HG")),
        Column("strength_band", "text", "band of the strength score"),
        Column("confidence", "float", "of the prediction, a probability", least=0, most=1),
        Column(
            "entry_price",
            "float",
            "open of the next bar, quote currency; NULL = unscorable",
            nullable=True,
        ),
        Column("exit_price", "float", "quote currency; NULL = unscorable", nullable=True),
        Column(
            "exit_reason",
            "text",
            "what ended the trade",
            among=EXITS,
        ),
        Column("reason", "text", "why unscorable; NULL = scored", nullable=True),
        Column(
            "return_pct",
            "float",
            "of the entry price, after costs; NULL = unscorable",
            nullable=True,
        ),
        Column("win", "flag", "return_pct above 0; NULL = unscorable", nullable=True),
    ),
    key=("symbol", "bar_ts"),
)

ALERTS = Table(
    "alerts",
    "Every alert that was handed over for delivery; at most one per signal.",
    (
        _SYMBOL,
        _BAR_TS,
        Column("posted_at", "time", "moment of handing it over, UTC"),
        Column("title", "text", "its first line"),
    ),
    key=("symbol", "bar_ts"),
)

TABLES: tuple[Table, ...] = (
    RAW_QUOTES,
    GAPS,
    DAILY_BARS,
    OPTION_CHAINS,
    CHAIN_FETCHES,
    HEDGE_LEVELS,
    FEATURE_ROWS,
    PREDICTION_LOG,
    OUTCOMES,
    PROMOTIONS,
    PERFORMANCE,
    LEVEL_EVIDENCE,
    TRADES,
    ALERTS,
)

_LOGGED_AT = Column("logged_at", "time", "moment the old file gives, UTC")
_MINUTE = Column("bar_ts", "time", "start of the minute the moment lies in, UTC; any hour and day")
_PREDICTION_ID = Column(
    "prediction_id", "text", "as the old file has it; NULL = it has none", nullable=True
)
_IMPORTED_AT = Column("imported_at", "time", "when the row was imported, UTC")

LEGACY_PREDICTIONS = Table(
    "legacy_predictions",
    "Predictions of the system before this one, as its file has them. Never evidence.",
    (
        _SYMBOL,
        _LOGGED_AT,
        _MINUTE,
        _PREDICTION_ID,
        Column("price", "float", "quote currency; NULL = not in the file", nullable=True),
        Column("prediction", "small", "1 up, 0 down", least=0, most=1),
        Column(
            "confidence",
            "float",
            "as the old system understood it; NULL = not in the file",
            nullable=True,
            least=0,
            most=1,
        ),
        Column(
            "strength_score",
            "float",
            "of the old system's own scale; NULL = not in the file",
            nullable=True,
            least=0,
            most=100,
        ),
        Column(
            "level_type",
            "text",
            "side of its level; NULL = not in the file",
            nullable=True,
            among=("support", "resistance", "none"),
        ),
        Column(
            "level_source",
            "text",
            "kind of its level; NULL = not in the file",
            nullable=True,
            among=("HP", "MHP", "HG", "none"),
        ),
        Column(
            "signal_fired",
            "flag",
            "whether it called it a signal; NULL = not in the file",
            nullable=True,
        ),
        Column(
            "model_version",
            "text",
            "name of its model file; NULL = not in the file",
            nullable=True,
        ),
        _IMPORTED_AT,
    ),
    key=("symbol", "logged_at"),
    first_by="imported_at",
)

LEGACY_FEATURES = Table(
    "legacy_features",
    "Features of the system before this one, one row per value. Never trained on.",
    (
        _SYMBOL,
        _LOGGED_AT,
        _MINUTE,
        Column("name", "text", "of the feature, as the old file spells it"),
        Column("value", "float", "as the old file has it; NULL = empty there", nullable=True),
        _IMPORTED_AT,
    ),
    key=("symbol", "logged_at", "name"),
    first_by="imported_at",
    bulky=True,
)

LEGACY_OUTCOMES = Table(
    "legacy_outcomes",
    "Outcomes as the system before this one saw them. Never labels.",
    (
        _SYMBOL,
        _LOGGED_AT,
        _MINUTE,
        Column(
            "horizon", "text", "minutes or bars, as the old file has it; unknown = it does not say"
        ),
        _PREDICTION_ID,
        Column("entry_price", "float", "quote currency; NULL = not in the file", nullable=True),
        Column("exit_price", "float", "quote currency; NULL = not in the file", nullable=True),
        Column(
            "return_pct",
            "float",
            "in whatever unit the old file has it; NULL = not in the file",
            nullable=True,
        ),
        Column("actual_direction", "small", "1 up, 0 down", least=0, most=1),
        _IMPORTED_AT,
    ),
    key=("symbol", "logged_at", "horizon"),
    first_by="imported_at",
)

# apart from TABLES: what the loop reads, scores and learns from does not contain them; see
# `legacy.py`. The session in their paths is a date of the exchange and need be no session.
LEGACY_TABLES: tuple[Table, ...] = (LEGACY_PREDICTIONS, LEGACY_FEATURES, LEGACY_OUTCOMES)


def without(
    frame: pd.DataFrame, known: pd.DataFrame, key: Sequence[str] = ("symbol", "bar_ts")
) -> pd.DataFrame:
    """The rows of a frame whose key is not among the known rows."""
    if known.empty or frame.empty:
        return frame
    own, others = _codes(frame, known, key)
    return frame[~np.isin(own, others)]


def places_among(
    frame: pd.DataFrame, known: pd.DataFrame, key: Sequence[str] = ("symbol", "bar_ts")
) -> npt.NDArray[np.int64]:
    """Place of each row's key among the known rows, [rows]; -1 = it is not there.

    Args:
        frame: any rows.
        known: rows that differ in their keys.
        key: columns that both have.
    """
    if known.empty or frame.empty:
        return np.full(len(frame), -1)
    own, others = _codes(frame, known, key)
    order = np.argsort(others, kind="stable")
    found = order[np.minimum(np.searchsorted(others, own, sorter=order), len(order) - 1)]
    return np.where(others[found] == own, found, -1)


def _codes(
    frame: pd.DataFrame, known: pd.DataFrame, key: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The keys of both as numbers that are equal where the keys are."""
    codes = np.zeros(len(frame) + len(known), dtype=np.int64)
    for name in key:
        values = codes_of(frame[name], known[name])
        codes = codes * (values.max() + 2) + values
    return codes[: len(frame)], codes[len(frame) :]


def codes_of(*columns: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """Numbers from 0 on that are equal where the values of the columns are, one after another.

    Args:
        columns: texts, times or numbers, of one dtype.
    """
    import pandas as pd

    plain: Any
    if columns[0].dtype.kind == "M":
        plain = np.concatenate([x.to_numpy(dtype="datetime64[us]") for x in columns])
    elif sum(map(len, columns)) > _FEW_CODES:
        plain = pd.concat(columns)
    else:  # of a few texts Arrow's codes take ten times as long
        plain = np.concatenate([x.to_numpy(dtype=object) for x in columns])
    return np.asarray(pd.factorize(plain, sort=False)[0], dtype=np.int64)


def feature_names() -> Sequence[str]:
    """Names of the feature columns in stored order."""
    return tuple(feature.name for feature in FEATURES)
