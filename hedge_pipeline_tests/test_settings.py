"""What a user may set, and the one line that a wrong value gets."""

from __future__ import annotations

import datetime as dt
import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from hedge_pipeline.settings import Settings, SettingsError, load_settings

REPOSITORY = Path(__file__).resolve().parent.parent
ALIASES = {str(field.alias) for field in Settings.model_fields.values()}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours is set and no `.env` lies in the working directory."""
    for name in list(os.environ):
        if name.upper() in ALIASES:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_without_any_variable_the_simulated_market_is_watched() -> None:
    settings = load_settings()
    assert settings.symbols == ("SIMQ", "SIMN")
    assert settings.source == "simulated"
    assert settings.data_url == "data"
    assert settings.calendar == "XNYS"
    assert settings.history_start == dt.date(2024, 1, 2)
    assert (settings.bar_seconds, settings.horizon_bars, settings.seed) == (60, 10, 7)
    assert (settings.retrain_hour, settings.min_samples_for_retrain) == (2, 100)
    assert settings.retrain_check_interval == 3600
    assert settings.mode == "live"


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("HEDGE_SYMBOLS", "QQQ", "symbols", ("QQQ",)),
        ("HEDGE_SYMBOLS", " qqq, spy ,BRK.B,BTC-USD,^vix,, ", "symbols", None),
        ("HEDGE_SOURCE", "file", "source", "file"),
        ("HEDGE_SOURCE_PATH", "a.csv, b/c", "source_path", ("a.csv", "b/c")),
        ("HEDGE_SOURCE_PATH", "", "source_path", ()),
        ("HEDGE_SEED", "0", "seed", 0),
        ("HEDGE_DATA_URL", "s3://bucket/x", "data_url", "s3://bucket/x"),
        ("HEDGE_MODE", "replay", "mode", "replay"),
        ("HEDGE_CALENDAR", "24/7", "calendar", "24/7"),
        ("HEDGE_HISTORY_START", "2025-02-03", "history_start", dt.date(2025, 2, 3)),
        ("HEDGE_BAR_SECONDS", "3600", "bar_seconds", 3600),
        ("HEDGE_HORIZON_BARS", "120", "horizon_bars", 120),
        ("HEDGE_DEAD_BAND_BP", "0", "dead_band_bp", 0.0),
        ("HEDGE_HALF_LIFE_SESSIONS", "0.5", "half_life_sessions", 0.5),
        ("RETRAIN_HOUR", "0", "retrain_hour", 0),
        ("RETRAIN_HOUR", "23", "retrain_hour", 23),
        ("RETRAIN_HOUR", "", "retrain_hour", None),
        ("MIN_SAMPLES_FOR_RETRAIN", "1", "min_samples_for_retrain", 1),
        ("RETRAIN_CHECK_INTERVAL", "30", "retrain_check_interval", 30),
        ("MLFLOW_TRACKING_URI", "http://x:5000", "mlflow_tracking_uri", "http://x:5000"),
        ("LOG_LEVEL", "DEBUG", "log_level", "DEBUG"),
    ],
)
def test_a_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, field: str, value: object
) -> None:
    monkeypatch.setenv(name, text)
    expected = ("QQQ", "SPY", "BRK.B", "BTC-USD", "^VIX") if "brk" in text.lower() else value
    assert getattr(load_settings(), field) == expected


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("HEDGE_SYMBOLS", "", "at least 1 item"),
        ("HEDGE_SYMBOLS", " , ", "at least 1 item"),
        ("HEDGE_SYMBOLS", "QQQ,../etc", "'../etc' is no symbol"),
        ("HEDGE_SYMBOLS", "QQQ,A B", "'A B' is no symbol"),
        ("HEDGE_SYMBOLS", "-", "'-' is no symbol"),
        ("HEDGE_SYMBOLS", "QQQ,SPY,QQQ", "a symbol is named twice"),
        ("HEDGE_SYMBOLS", "QQQ,qqq", "a symbol is named twice"),
        ("HEDGE_SEED", "-1", "greater than or equal to 0"),
        ("HEDGE_SEED", "seven", "valid integer"),
        ("HEDGE_DATA_URL", "", "at least 1 character"),
        ("HEDGE_MODE", "paper", "'live' or 'replay'"),
        ("HEDGE_CALENDAR", "NYSE2", "no such exchange calendar; XNYS and 24/7 are examples"),
        ("HEDGE_HISTORY_START", "2025-13-01", "valid date"),
        ("HEDGE_BAR_SECONDS", "59", "greater than or equal to 60"),
        ("HEDGE_BAR_SECONDS", "3601", "less than or equal to 3600"),
        ("HEDGE_HORIZON_BARS", "0", "greater than or equal to 1"),
        ("HEDGE_HORIZON_BARS", "121", "less than or equal to 120"),
        ("HEDGE_DEAD_BAND_BP", "-0.1", "greater than or equal to 0"),
        ("HEDGE_DEAD_BAND_BP", "101", "less than or equal to 100"),
        ("HEDGE_HALF_LIFE_SESSIONS", "0", "greater than 0"),
        ("HEDGE_HALF_LIFE_SESSIONS", "1001", "less than or equal to 1000"),
        ("RETRAIN_HOUR", "24", "less than or equal to 23"),
        ("RETRAIN_HOUR", "-1", "greater than or equal to 0"),
        ("RETRAIN_HOUR", "two", "valid integer"),
        ("MIN_SAMPLES_FOR_RETRAIN", "0", "greater than or equal to 1"),
        ("RETRAIN_CHECK_INTERVAL", "29", "greater than or equal to 30"),
        ("LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ],
)
def test_a_bad_value_gets_one_line_with_variable_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, reason: str
) -> None:
    line = refusal(monkeypatch, **{name: text})
    assert line.startswith(f"{name}=")
    assert reason in line
    assert all(part in line for part in re.split(r"[,\s]+", text) if part)


def test_every_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    line = refusal(monkeypatch, RETRAIN_HOUR="99", LOG_LEVEL="LOUD")
    assert "RETRAIN_HOUR='99': " in line
    assert "; LOG_LEVEL='LOUD': " in line


def test_a_dot_env_file_is_read_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        "HEDGE_SYMBOLS=QQQ,SPY\nRETRAIN_HOUR=\nHEDGE_SEED=5\nSOMETHING_ELSE=1\n"
    )
    monkeypatch.setenv("HEDGE_SEED", "6")
    settings = load_settings()
    assert settings.symbols == ("QQQ", "SPY")
    assert settings.retrain_hour is None
    assert settings.seed == 6


def test_an_override_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGE_SEED", "6")
    assert load_settings(seed=8).seed == 8
    with pytest.raises(SettingsError, match="HEDGE_SEED=-1: "):
        load_settings(seed=-1)


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, "seed", 8)  # noqa: B010


@pytest.mark.parametrize(
    ("data_url", "uri", "expected"),
    [
        ("data", "", "sqlite:///data/mlflow.db"),
        ("/srv/hedge", "", "sqlite:////srv/hedge/mlflow.db"),
        ("data", "http://x:5000", "http://x:5000"),
        ("s3://bucket", "http://x:5000", "http://x:5000"),
    ],
)
def test_experiments_are_kept_beside_the_data_unless_told_otherwise(
    data_url: str, uri: str, expected: str
) -> None:
    settings = load_settings(data_url=data_url, mlflow_tracking_uri=uri)
    assert settings.tracking_uri == expected


def test_remote_data_needs_a_tracking_store_of_its_own() -> None:
    with pytest.raises(SettingsError, match="MLFLOW_TRACKING_URI must be set"):
        _ = load_settings(data_url="s3://bucket").tracking_uri


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_field_has_a_variable_and_a_meaning(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.alias == str(field.alias).upper()
    assert len(str(field.description).split()) >= 3


def test_the_example_file_lists_exactly_the_variables_that_are_read() -> None:
    text = (REPOSITORY / ".env.example").read_text()
    listed = re.findall(r"^(?:# ?)?([A-Z][A-Z0-9_]+)=", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(ALIASES)
