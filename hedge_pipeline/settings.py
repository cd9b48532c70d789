"""Every variable a user sets, in one class.

Values come from the environment or a `.env` file in the working directory; a bad value stops
start-up with one line that names the variable. Beside these the project reads DAGSTER_HOME and the
variables that dagster.yaml names, which are Dagster's, and what the service tells its processes:
MLFLOW_BACKEND_STORE_URI (`resources/upkeep.py`) and HEDGE_RUNS_SOCKET (`resources/launching.py`).
"""

from __future__ import annotations

import datetime as dt
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DealerSign = Literal["calls+puts-", "calls-puts+", "calls+puts+", "calls-puts-"]


class SettingsError(ValueError):
    """A variable has a value outside its allowed range; the message is one line per variable."""


class Settings(BaseSettings):
    """The configuration of one deployment; `docs/configuration.md` is the same list as a table."""

    model_config = SettingsConfigDict(
        env_file=".env",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
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
        description="market data source: simulated, file, yahoo, or the name of a plug-in",
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
        description="first session that can be materialized, not in the future",
    )
    backfill_sessions: int | None = Field(
        default=None,
        alias="HEDGE_BACKFILL_SESSIONS",
        ge=1,
        description="sessions of one run of a backfill; empty = all of them",
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
    model_scope: Literal["symbol", "pool"] = Field(
        default="symbol",
        alias="HEDGE_MODEL_SCOPE",
        description="symbol: a model per symbol; pool: one model trained on all symbols' rows",
    )
    train_backend: Literal["local", "dask"] = Field(
        default="local",
        alias="HEDGE_TRAIN_BACKEND",
        description="where models are fitted: local, or dask = on a Dask cluster (extra `dask`)",
    )
    dask_scheduler: str = Field(
        default="",
        alias="HEDGE_DASK_SCHEDULER",
        validate_default=True,
        description="address of the Dask scheduler, tcp://host:8786 or tls://host:8786",
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
    cache_ttl: int = Field(
        default=300,
        alias="CACHE_TTL",
        ge=60,
        le=86_400,
        description="seconds between two requests for an option chain",
    )
    chain_max_age: int = Field(
        default=3600,
        alias="HEDGE_CHAIN_MAX_AGE",
        ge=60,
        le=86_400,
        validate_default=True,
        description="hedge levels older than this many seconds are stale and not used",
    )
    dealer_sign: DealerSign = Field(
        default="calls+puts-",
        alias="HEDGE_DEALER_SIGN",
        description="sign of the dealers' position in calls and puts, a heuristic: "
        "calls+puts-, calls-puts+, calls+puts+ or calls-puts-",
    )
    risk_free_rate: float = Field(
        default=0.04,
        alias="HEDGE_RISK_FREE_RATE",
        ge=-0.05,
        le=0.25,
        description="continuous annual interest rate of the option greeks",
    )
    dividend_yield: float = Field(
        default=0.006,
        alias="HEDGE_DIVIDEND_YIELD",
        ge=0,
        le=0.25,
        description="continuous annual dividend yield of the option greeks",
    )
    signal_sides: Literal["support", "both"] = Field(
        default="support",
        alias="HEDGE_SIGNAL_SIDES",
        description="support: long signals only; both: also short ones at resistance",
    )
    min_strength: float = Field(
        default=15,
        alias="MIN_STRENGTH",
        ge=0,
        le=100,
        description="least strength score of a signal",
    )
    max_strength: float = Field(
        default=30,
        alias="MAX_STRENGTH",
        ge=0,
        le=100,
        validate_default=True,
        description="greatest strength score of a signal",
    )
    min_confidence: float = Field(
        default=0.55,
        alias="MIN_CONFIDENCE",
        ge=0,
        le=1,
        description="least confidence of a signal, a probability",
    )
    evidence_prior: float = Field(
        default=200,
        alias="HEDGE_EVIDENCE_PRIOR",
        gt=0,
        le=1_000_000,
        description="effective outcomes that outcomes at a level are weighed against",
    )
    alert_cooldown: int = Field(
        default=300,
        alias="ALERT_COOLDOWN",
        ge=0,
        le=86_400,
        description="seconds after a signal in which its symbol has no other",
    )
    alert_urls: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        alias="HEDGE_ALERT_URLS",
        description="Apprise URLs that get the alerts, separated by commas or spaces; secret",
    )
    alert_unproven: bool = Field(
        default=False,
        alias="HEDGE_ALERT_UNPROVEN",
        description="alerts also go out while skill is not proven",
    )
    cost_bps: float = Field(
        default=1,
        alias="HEDGE_COST_BPS",
        ge=0,
        le=100,
        description="cost of a trade per side, basis points",
    )
    mlflow_tracking_uri: str = Field(
        default="",
        alias="MLFLOW_TRACKING_URI",
        description="empty = mlflow.db inside the data folder",
    )
    dagster_url: str = Field(
        default="",
        alias="HEDGE_DAGSTER_URL",
        description="address of Dagster's web UI, for links; empty = where `hedge up` runs it",
    )
    mlflow_url: str = Field(
        default="",
        alias="HEDGE_MLFLOW_URL",
        description="address of MLflow's web UI, for links; empty = where `hedge up` runs it",
    )
    backup_url: SecretStr = Field(
        default=SecretStr(""),
        alias="HEDGE_BACKUP_URL",
        description="folder or fsspec URL of the nightly backup; empty = none; secret",
    )
    backup_keep: int = Field(
        default=30,
        alias="HEDGE_BACKUP_KEEP",
        ge=1,
        description="newest snapshots the nightly backup keeps",
    )
    retention_days: int | None = Field(
        default=None,
        alias="HEDGE_RETENTION_DAYS",
        ge=1,
        description="calendar days that table rows are kept; empty = for ever",
    )
    run_retention_days: int = Field(
        default=14,
        alias="HEDGE_RUN_RETENTION_DAYS",
        ge=1,
        description="days that Dagster keeps finished runs and their events",
    )
    model_versions: int = Field(
        default=50,
        alias="HEDGE_MODEL_VERSIONS",
        ge=1,
        description="newest versions MLflow keeps of a model, beside those that were champion",
    )
    disk_budget_mb: int | None = Field(
        default=None,
        alias="HEDGE_DISK_BUDGET_MB",
        ge=1,
        description="MB of disk the deployment may use before it warns; empty = no limit",
    )
    alert_no_bar_minutes: int = Field(
        default=15,
        alias="HEDGE_ALERT_NO_BAR_MINUTES",
        ge=2,
        le=1440,
        description="minutes without a new bar in a session before an alert goes out, beyond "
        "the length of a bar or POLLING_INTERVAL, whichever is longer",
    )
    alert_failed_trainings: int = Field(
        default=3,
        alias="HEDGE_ALERT_FAILED_TRAININGS",
        ge=1,
        description="failed trainings in a row before an alert goes out",
    )
    alert_repeat_hours: int = Field(
        default=12,
        alias="HEDGE_ALERT_REPEAT_HOURS",
        ge=1,
        description="hours before the same trouble is told again",
    )
    bind: str = Field(
        default="127.0.0.1",
        alias="HEDGE_BIND",
        description="address the web UIs listen on; neither asks who is there",
    )
    behind_proxy: bool = Field(
        default=False,
        alias="HEDGE_BEHIND_PROXY",
        validate_default=True,
        description="an authenticating proxy stands before the web UIs; needed to bind elsewhere",
    )
    mlflow_allowed_hosts: str = Field(
        default="",
        alias="HEDGE_MLFLOW_ALLOWED_HOSTS",
        description="comma-separated host names MLflow answers to; empty = loopback",
    )
    mlflow_allowed_origins: str = Field(
        default="",
        alias="HEDGE_MLFLOW_ALLOWED_ORIGINS",
        description="comma-separated origins MLflow lets browsers call from; empty = loopback",
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
                raise ValueError(
                    f"{symbol!r} is no symbol: letters or digits, and . - ^ = among them"
                )
        symbols = tuple(symbol.upper() for symbol in value)
        if len(set(symbols)) != len(symbols):
            raise ValueError("a symbol is named twice")
        return symbols

    @field_validator(
        "retrain_hour", "backfill_sessions", "retention_days", "disk_budget_mb", mode="before"
    )
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("alert_urls", mode="before")
    @classmethod
    def _separate_urls(cls, value: Any) -> Any:
        if isinstance(value, str):
            # a comma may be part of a URL: only one before the next scheme separates
            parts = re.split(r"\s+|,(?=[A-Za-z][\w+.-]*://)", value)
            return tuple(url for part in parts if (url := part.strip(",")))
        return value

    @field_validator("alert_urls")
    @classmethod
    def _look_like_urls(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for place, url in enumerate(value, start=1):
            if not re.match(r"[A-Za-z][\w+.-]*://.", url.get_secret_value()):
                raise ValueError(f"entry {place} of {len(value)} is no URL (service://...)")
        return value

    @field_validator("max_strength", "chain_max_age")
    @classmethod
    def _not_below(cls, value: float, info: ValidationInfo) -> float:
        name, alias = {
            "max_strength": ("min_strength", "MIN_STRENGTH"),
            "chain_max_age": ("cache_ttl", "CACHE_TTL"),
        }[str(info.field_name)]
        least = info.data.get(name)
        if least is not None and value < least:
            raise ValueError(f"must not be below {alias}={least:g}")
        return value

    @field_validator("dask_scheduler")
    @classmethod
    def _scheduler_of_the_cluster(cls, value: str, info: ValidationInfo) -> str:
        if value and not re.fullmatch(r"(tcp|tls|ws|wss)://[^\s/]+", value):
            raise ValueError("is no address of a scheduler, such as tcp://host:8786")
        if not value and info.data.get("train_backend") == "dask":
            raise ValueError("HEDGE_TRAIN_BACKEND=dask needs the address, such as tcp://host:8786")
        return value

    @field_validator("behind_proxy")
    @classmethod
    def _proxy_before_others(cls, value: bool, info: ValidationInfo) -> bool:
        bind = info.data.get("bind", "127.0.0.1")
        if not value and bind not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(
                f"others can reach HEDGE_BIND={bind} and the web UIs ask nobody who is there: put "
                "an authenticating proxy before them and say so with true"
            )
        return value

    @field_validator("history_start")
    @classmethod
    def _history_lies_behind(cls, value: dt.date) -> dt.date:
        if value > dt.date.today():
            raise ValueError("must not lie in the future")
        return value

    @field_validator("calendar")
    @classmethod
    def _known_calendar(cls, value: str) -> str:
        import exchange_calendars

        if value not in exchange_calendars.get_calendar_names(include_aliases=True):
            raise ValueError("no such exchange calendar; XNYS and 24/7 are examples")
        return value

    @property
    def dealer_signs(self) -> tuple[int, int]:
        """Sign of the dealers' position in calls and in puts, each +1 or -1."""
        calls, puts = re.findall("[+-]", self.dealer_sign)
        return int(f"{calls}1"), int(f"{puts}1")

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

    @property
    def artifacts(self) -> str:
        """Where MLflow's files lie if no server takes them; MLflow itself would use `./mlruns`."""
        return artifacts_below(self.data_url)


def artifacts_below(data_url: str) -> str:
    """Address of MLflow's files in a data folder or below its URL."""
    if "://" in data_url:
        return f"{data_url.rstrip('/')}/mlartifacts"
    return (Path(data_url).resolve() / "mlartifacts").as_uri()


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
    shown = "***" if alias in _SECRETS else repr(item["input"])
    return f"{alias}={shown}: {message[0].lower()}{message[1:]}"


_SECRETS = frozenset(
    field.alias
    for field in Settings.model_fields.values()
    if SecretStr in (field.annotation, *get_args(field.annotation))
)
