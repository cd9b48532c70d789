"""Every variable the code reads, in one class.

Values come from the environment or a `.env` file in the working directory. Nothing else in the
project reads the environment; a bad value stops start-up with one line that names the variable.
"""

from __future__ import annotations

import datetime as dt
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class SettingsError(ValueError):
    """A variable has a value outside its allowed range; the message is one line per variable."""


class Settings(BaseSettings):
    """The configuration of one deployment; see `.env.example` for the same list in plain words."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    symbols: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("SIMQ", "SIMN"),
        alias="HEDGE_SYMBOLS",
        min_length=1,
        description="comma-separated symbols to watch",
    )
    source: str = Field(
        default="simulated",
        alias="HEDGE_SOURCE",
        description="market data source: simulated, file, or the name of an installed plug-in",
    )
    source_path: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        alias="HEDGE_SOURCE_PATH",
        description="comma-separated files or folders of the file source",
    )
    seed: int = Field(
        default=7, alias="HEDGE_SEED", ge=0, description="seed of the simulated market"
    )
    data_url: str = Field(
        default="data",
        alias="HEDGE_DATA_URL",
        min_length=1,
        description="folder or fsspec URL that holds the tables",
    )
    mode: Literal["live", "replay"] = Field(
        default="live",
        alias="HEDGE_MODE",
        description="live: past sessions are backfill and no evidence; "
        "replay: the store is a replay of history and says so in every row",
    )
    calendar: str = Field(
        default="XNYS",
        alias="HEDGE_CALENDAR",
        description="exchange calendar name (24/7 for crypto)",
    )
    history_start: dt.date = Field(
        default=dt.date(2024, 1, 2),
        alias="HEDGE_HISTORY_START",
        description="first session that can be materialized",
    )
    bar_seconds: int = Field(
        default=60,
        alias="HEDGE_BAR_SECONDS",
        ge=60,
        le=3600,
        description="length of a bar, seconds",
    )
    horizon_bars: int = Field(
        default=10, alias="HEDGE_HORIZON_BARS", ge=1, le=120, description="label horizon, bars"
    )
    dead_band_bp: float = Field(
        default=0.2,
        alias="HEDGE_DEAD_BAND_BP",
        ge=0,
        le=100,
        description="an absolute return up to this many basis points is flat",
    )
    half_life_sessions: float = Field(
        default=20,
        alias="HEDGE_HALF_LIFE_SESSIONS",
        gt=0,
        le=1000,
        description="age at which a training row weighs half, sessions",
    )
    polling_interval: int = Field(
        default=60,
        alias="POLLING_INTERVAL",
        ge=10,
        le=3600,
        description="seconds between two polls of the source",
    )
    poll_run_minutes: int = Field(
        default=60,
        alias="HEDGE_POLL_RUN_MINUTES",
        ge=1,
        le=1440,
        description="time box of one poll run, minutes",
    )
    autostart: bool = Field(
        default=False,
        alias="HEDGE_AUTOSTART",
        description="schedules and sensor run without being switched on in the UI",
    )
    retrain_hour: int | None = Field(
        default=2,
        alias="RETRAIN_HOUR",
        ge=0,
        le=23,
        description="exchange-local hour of retraining; empty = any hour",
    )
    min_samples_for_retrain: int = Field(
        default=100,
        alias="MIN_SAMPLES_FOR_RETRAIN",
        ge=1,
        description="new matured outcomes that ask for a retraining",
    )
    retrain_check_interval: int = Field(
        default=3600,
        alias="RETRAIN_CHECK_INTERVAL",
        ge=30,
        description="seconds between two looks of the retraining sensor",
    )
    mlflow_tracking_uri: str = Field(
        default="",
        alias="MLFLOW_TRACKING_URI",
        description="empty = mlflow.db inside the data folder",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", alias="LOG_LEVEL", description="DEBUG, INFO, WARNING or ERROR"
    )

    @field_validator("symbols", "source_path", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("symbols")
    @classmethod
    def _clean_symbols(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for symbol in value:
            if (
                not symbol.replace(".", "")
                .replace("-", "")
                .replace("^", "")
                .replace("=", "")
                .isalnum()
            ):
                raise ValueError(f"{symbol!r} is no symbol")
        symbols = tuple(symbol.upper() for symbol in value)
        if len(set(symbols)) != len(symbols):
            raise ValueError("a symbol is named twice")
        return symbols

    @field_validator("retrain_hour", mode="before")
    @classmethod
    def _empty_hour(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("calendar")
    @classmethod
    def _known_calendar(cls, value: str) -> str:
        import exchange_calendars

        if value not in exchange_calendars.get_calendar_names(include_aliases=True):
            raise ValueError("no such exchange calendar; XNYS and 24/7 are examples")
        return value

    @cached_property
    def tracking_uri(self) -> str:
        """MLflow's store: the variable, or a SQLite file inside a local data folder.

        Raises:
            SettingsError: the tables live at a remote URL and no tracking store is named.
        """
        if self.mlflow_tracking_uri:
            return self.mlflow_tracking_uri
        if "://" in self.data_url:
            raise SettingsError("MLFLOW_TRACKING_URI must be set when HEDGE_DATA_URL is a URL")
        return f"sqlite:///{self.data_url}/mlflow.db"


def load_settings(**overrides: Any) -> Settings:
    """Reads the environment and `.env`; keyword arguments win.

    Raises:
        SettingsError: one line per variable with its value and what is allowed.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(_one_line(item) for item in error.errors())) from None


def _one_line(item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    fields = Settings.model_fields
    alias = fields[name].alias if name in fields else name
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{alias}={item['input']!r}: {message[0].lower()}{message[1:]}"
