"""Where bars come from: one protocol with typed outcomes, built-in sources, third-party plug-ins.

A plug-in is a callable registered under the entry point group `hedge_pipeline.sources`; it is
called with a `SourceOptions` and returns a `MarketSource`.
"""

from hedge_pipeline.market.sources.protocol import (
    CHAIN_COLUMNS,
    BadInput,
    Capabilities,
    ChainSource,
    DailySource,
    MarketSource,
    NoDataYet,
    RateLimited,
    SchemaDrift,
    SourceDown,
    SourceError,
    SourceOptions,
    SymbolUnknown,
    UnknownSource,
    WindowRefused,
    available_sources,
    open_source,
)

__all__ = [
    "CHAIN_COLUMNS",
    "BadInput",
    "Capabilities",
    "ChainSource",
    "DailySource",
    "MarketSource",
    "NoDataYet",
    "RateLimited",
    "SchemaDrift",
    "SourceDown",
    "SourceError",
    "SourceOptions",
    "SymbolUnknown",
    "UnknownSource",
    "WindowRefused",
    "available_sources",
    "open_source",
]
