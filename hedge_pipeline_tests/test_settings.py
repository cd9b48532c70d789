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
    assert (settings.cache_ttl, settings.chain_max_age) == (300, 3600)
    assert (settings.dealer_sign, settings.dealer_signs) == ("calls+puts-", (1, -1))
    assert (settings.risk_free_rate, settings.dividend_yield) == (0.04, 0.006)
    assert (settings.min_strength, settings.max_strength) == (15, 30)
    assert (settings.min_confidence, settings.signal_sides) == (0.55, "support")
    assert (settings.evidence_prior, settings.cost_bps) == (200, 1)
    assert (settings.alert_cooldown, settings.alert_urls) == (300, ())
    assert settings.alert_unproven is False


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
        ("HEDGE_BACKFILL_SESSIONS", "", "backfill_sessions", None),
        ("HEDGE_BACKFILL_SESSIONS", "32", "backfill_sessions", 32),
        ("HEDGE_BAR_SECONDS", "3600", "bar_seconds", 3600),
        ("HEDGE_HORIZON_BARS", "120", "horizon_bars", 120),
        ("HEDGE_DEAD_BAND_BP", "0", "dead_band_bp", 0.0),
        ("HEDGE_HALF_LIFE_SESSIONS", "0.5", "half_life_sessions", 0.5),
        ("RETRAIN_HOUR", "0", "retrain_hour", 0),
        ("RETRAIN_HOUR", "23", "retrain_hour", 23),
        ("RETRAIN_HOUR", "", "retrain_hour", None),
        ("MIN_SAMPLES_FOR_RETRAIN", "1", "min_samples_for_retrain", 1),
        ("RETRAIN_CHECK_INTERVAL", "30", "retrain_check_interval", 30),
        ("CACHE_TTL", "60", "cache_ttl", 60),
        ("HEDGE_CHAIN_MAX_AGE", "300", "chain_max_age", 300),
        ("HEDGE_DEALER_SIGN", "calls-puts+", "dealer_signs", (-1, 1)),
        ("HEDGE_DEALER_SIGN", "calls+puts+", "dealer_signs", (1, 1)),
        ("HEDGE_DEALER_SIGN", "calls-puts-", "dealer_signs", (-1, -1)),
        ("HEDGE_RISK_FREE_RATE", "-0.005", "risk_free_rate", -0.005),
        ("HEDGE_DIVIDEND_YIELD", "0", "dividend_yield", 0.0),
        ("HEDGE_SIGNAL_SIDES", "both", "signal_sides", "both"),
        ("MIN_STRENGTH", "30", "min_strength", 30.0),
        ("MAX_STRENGTH", "15", "max_strength", 15.0),
        ("MIN_CONFIDENCE", "0.5", "min_confidence", 0.5),
        ("HEDGE_EVIDENCE_PRIOR", "50", "evidence_prior", 50.0),
        ("ALERT_COOLDOWN", "0", "alert_cooldown", 0),
        ("HEDGE_ALERT_URLS", "", "alert_urls", ()),
        ("HEDGE_ALERT_UNPROVEN", "1", "alert_unproven", True),
        ("HEDGE_COST_BPS", "0", "cost_bps", 0.0),
        ("HEDGE_RETENTION_DAYS", "", "retention_days", None),
        ("HEDGE_RETENTION_DAYS", "400", "retention_days", 400),
        ("HEDGE_DISK_BUDGET_MB", "", "disk_budget_mb", None),
        ("HEDGE_BACKUP_KEEP", "1", "backup_keep", 1),
        ("HEDGE_BIND", "localhost", "bind", "localhost"),
        ("HEDGE_BEHIND_PROXY", "true", "behind_proxy", True),
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
        ("HEDGE_HISTORY_START", "2999-01-04", "must not lie in the future"),
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
        ("CACHE_TTL", "59", "greater than or equal to 60"),
        ("HEDGE_CHAIN_MAX_AGE", "59", "greater than or equal to 60"),
        ("HEDGE_CHAIN_MAX_AGE", "299", "must not be below CACHE_TTL=300"),
        ("HEDGE_DEALER_SIGN", "puts+calls-", "'calls+puts-', 'calls-puts+'"),
        ("HEDGE_RISK_FREE_RATE", "4", "less than or equal to 0.25"),
        ("HEDGE_DIVIDEND_YIELD", "-0.1", "greater than or equal to 0"),
        ("HEDGE_SIGNAL_SIDES", "resistance", "'support' or 'both'"),
        ("MIN_STRENGTH", "-1", "greater than or equal to 0"),
        ("MAX_STRENGTH", "101", "less than or equal to 100"),
        ("MAX_STRENGTH", "14.5", "must not be below MIN_STRENGTH=15"),
        ("MIN_CONFIDENCE", "55", "less than or equal to 1"),
        ("HEDGE_EVIDENCE_PRIOR", "0", "greater than 0"),
        ("ALERT_COOLDOWN", "-1", "greater than or equal to 0"),
        ("HEDGE_ALERT_UNPROVEN", "perhaps", "valid boolean"),
        ("HEDGE_COST_BPS", "-1", "greater than or equal to 0"),
        ("HEDGE_BACKFILL_SESSIONS", "0", "greater than or equal to 1"),
        ("HEDGE_RETENTION_DAYS", "0", "greater than or equal to 1"),
        ("HEDGE_RUN_RETENTION_DAYS", "0", "greater than or equal to 1"),
        ("HEDGE_MODEL_VERSIONS", "0", "greater than or equal to 1"),
        ("HEDGE_DISK_BUDGET_MB", "0", "greater than or equal to 1"),
        ("HEDGE_BACKUP_KEEP", "0", "greater than or equal to 1"),
        ("HEDGE_ALERT_NO_BAR_MINUTES", "1", "greater than or equal to 2"),
        ("HEDGE_ALERT_FAILED_TRAININGS", "0", "greater than or equal to 1"),
        ("HEDGE_ALERT_REPEAT_HOURS", "0", "greater than or equal to 1"),
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


def test_a_least_strength_above_the_default_greatest_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = refusal(monkeypatch, MIN_STRENGTH="40")
    assert line == "MAX_STRENGTH=30: must not be below MIN_STRENGTH=40"


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("json://a/b", ["json://a/b"]),
        ("json://a,tgram://b/c", ["json://a", "tgram://b/c"]),
        (" json://a , tgram://b\n\tmailtos://c, ", ["json://a", "tgram://b", "mailtos://c"]),
        ("mailto://u:p@x?to=a@x,b@y,json://c", ["mailto://u:p@x?to=a@x,b@y", "json://c"]),
        ("JSON://a,,Json://b", ["JSON://a", "Json://b"]),
    ],
)
def test_alert_urls_are_separated_by_commas_or_spaces(
    monkeypatch: pytest.MonkeyPatch, text: str, urls: list[str]
) -> None:
    monkeypatch.setenv("HEDGE_ALERT_URLS", text)
    assert [url.get_secret_value() for url in load_settings().alert_urls] == urls


@pytest.mark.parametrize("text", ["c4nary", "json://a, c4nary", "://c4nary", "json://a c4nary://"])
def test_what_is_no_alert_url_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    line = refusal(monkeypatch, HEDGE_ALERT_URLS=text)
    number = len(text.split())
    assert line == (f"HEDGE_ALERT_URLS=***: entry {number} of {number} is no URL (service://...)")


def test_alert_urls_are_not_shown_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGE_ALERT_URLS", "json://user:c4nary@host/c4nary")
    settings = load_settings()
    for shown in (repr(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "c4nary" not in shown
    with pytest.raises(SettingsError) as refused:
        load_settings(alert_urls=("json://c4nary", 7), seed=-1)
    assert "c4nary" not in str(refused.value)
    with pytest.raises(ValidationError) as raised:
        Settings(alert_urls=("c4nary",))
    assert "c4nary" not in str(raised.value)


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


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7", "hedge.example"])
def test_an_address_others_can_reach_needs_an_authenticating_proxy(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    line = refusal(monkeypatch, HEDGE_BIND=address)
    assert line.startswith("HEDGE_BEHIND_PROXY=False: ")
    assert f"HEDGE_BIND={address} " in line
    monkeypatch.setenv("HEDGE_BEHIND_PROXY", "true")
    assert load_settings().bind == address


def test_the_address_of_the_backup_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGE_BACKUP_URL", "ftp://canary:secret@host/folder")
    assert "canary" not in repr(load_settings()) + load_settings().model_dump_json()
