"""FreqAI's own sliding loop of training and predicting on minute bars; run by `benchmarks.peer`.

Runs with the Python of an environment of its own that has `freqtrade[freqai]`, and imports nothing
of this project. Sessions are laid on consecutive calendar days, since FreqAI knows no market
calendar. Prints one line of JSON: wall and CPU seconds of the loop, models and rows.

    python peer_loop.py BARS.parquet SYMBOL DAYS
"""

# mypy: disable-error-code="import-not-found,misc"

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from freqtrade.configuration import TimeRange
from freqtrade.enums import CandleType, RunMode
from freqtrade.freqai.data_kitchen import FreqaiDataKitchen
from freqtrade.freqai.prediction_models.XGBoostClassifier import XGBoostClassifier
from freqtrade.strategy import IStrategy
from xgboost import XGBClassifier

logging.basicConfig(level=logging.ERROR)
WINDOW_DAYS = 28


class Strategy(IStrategy):
    """25 features of the close, the range and the volume; the label is up or down in ten bars."""

    timeframe = "1m"
    minimal_roi: ClassVar[dict[str, float]] = {}
    stoploss = -0.1
    can_short = False

    def feature_engineering_expand_all(
        self, dataframe: pd.DataFrame, period: int, metadata: Any, **kwargs: Any
    ) -> pd.DataFrame:
        """Return, volatility, range and volume over each period."""
        change = dataframe["close"].pct_change()
        high, low = dataframe["high"].rolling(period).max(), dataframe["low"].rolling(period).min()
        dataframe["%-ret"] = dataframe["close"].pct_change(period)
        dataframe["%-vol"] = change.rolling(period).std()
        dataframe["%-range"] = (high - low) / dataframe["close"]
        dataframe["%-volume"] = dataframe["volume"] / dataframe["volume"].rolling(period).mean()
        return dataframe

    def feature_engineering_expand_basic(
        self, dataframe: pd.DataFrame, metadata: Any, **kwargs: Any
    ) -> pd.DataFrame:
        """Nothing more."""
        return dataframe

    def feature_engineering_standard(
        self, dataframe: pd.DataFrame, metadata: Any, **kwargs: Any
    ) -> pd.DataFrame:
        """Minute of the day."""
        dataframe["%-minute"] = dataframe["date"].dt.hour * 60 + dataframe["date"].dt.minute
        return dataframe

    def set_freqai_targets(
        self, dataframe: pd.DataFrame, metadata: Any, **kwargs: Any
    ) -> pd.DataFrame:
        """Up or down after ten bars."""
        self.freqai.class_names = ["down", "up"]
        later = dataframe["close"].shift(-10)
        dataframe["&-direction"] = np.where(later > dataframe["close"], "up", "down")
        return dataframe

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: Any) -> pd.DataFrame:
        """Nothing more."""
        return dataframe

    populate_entry_trend = populate_exit_trend = populate_indicators


def candles(path: str, symbol: str) -> pd.DataFrame:
    """Bars of the symbol on consecutive days."""
    bars = pd.read_parquet(path)
    bars = bars[(bars["symbol"] == symbol)].sort_values("ts")
    table = bars.rename(columns={"ts": "date"})[["date", "open", "high", "low", "close", "volume"]]
    table = table.reset_index(drop=True)
    days = {day: number for number, day in enumerate(sorted(table["date"].dt.date.unique()))}
    time_of_day = table["date"] - table["date"].dt.normalize()
    number = pd.to_timedelta(table["date"].dt.date.map(days), unit="D")
    table["date"] = pd.to_datetime("2025-01-01", utc=True) + number + time_of_day
    table["date"] = table["date"].astype("datetime64[ns, UTC]")
    return table


def configuration(work: Path, time_range: str) -> dict[str, Any]:
    """FreqAI's settings: a retraining per day on the last 28 days, one core."""
    return {
        "config_files": [str(work / "conf.json")],
        "timeframe": "1m",
        "runmode": RunMode.BACKTEST,
        "user_data_dir": work / "ud",
        "timerange": time_range,
        "datadir": work / "ud",
        "stake_currency": "USD",
        "candle_type_def": CandleType.SPOT,
        "exchange": {"name": "x", "pair_whitelist": ["A/USD"]},
        "pairs": ["A/USD"],
        "freqai": {
            "enabled": True,
            "identifier": "t",
            "train_period_days": WINDOW_DAYS,
            "backtest_period_days": 1,
            "live_retrain_hours": 0,
            "save_backtest_models": True,
            "write_metrics_to_disk": False,
            "activate_tensorboard": False,
            "purge_old_models": 2,
            "feature_parameters": {
                "include_timeframes": ["1m"],
                "include_corr_pairlist": [],
                "label_period_candles": 10,
                "include_shifted_candles": 0,
                "indicator_periods_candles": [3, 5, 10, 20, 30, 60],
                "weight_factor": 0.9,
                "DI_threshold": 0,
                "buffer_train_data_candles": 0,
                "shuffle_after_split": False,
            },
            "data_split_parameters": {"test_size": 0.1, "shuffle": False, "random_state": 1},
            "model_training_parameters": {
                "n_estimators": 200,
                "max_depth": 4,
                "learning_rate": 0.05,
                "subsample": 0.8,
                "colsample_bytree": 0.8,
                "tree_method": "hist",
                "n_jobs": 1,
                "random_state": 42,
            },
        },
    }


def main() -> None:
    """Runs the loop over the last days."""
    path, symbol, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    work = Path(tempfile.mkdtemp())
    (work / "ud" / "models").mkdir(parents=True)
    (work / "conf.json").write_text("{}")
    table = candles(path, symbol)
    days = sorted(table["date"].dt.date.unique())
    start, end = pd.Timestamp(days[-number]), pd.Timestamp(days[-1]) + pd.Timedelta(days=1)
    settings = configuration(work, f"{start:%Y%m%d}-{end:%Y%m%d}")
    model, strategy = XGBoostClassifier(config=settings), Strategy(settings)
    strategy.freqai, strategy.freqai_info = model, settings["freqai"]
    kitchen = FreqaiDataKitchen(settings)
    model.dk, model.live = kitchen, False
    fit, fitted = XGBClassifier.fit, []

    def timed(*arguments: Any, **more: Any) -> Any:
        used = time.process_time()
        try:
            return fit(*arguments, **more)
        finally:
            fitted.append(time.process_time() - used)

    XGBClassifier.fit = timed
    begun, used = time.perf_counter(), time.process_time()
    kitchen = model.start_backtesting(table, {"pair": "A/USD"}, kitchen, strategy)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - begun,
                "cpu_seconds": time.process_time() - used,
                "xgboost_cpu_seconds": sum(fitted),
                "models": len(list((work / "ud" / "models" / "t").glob("sub-train*"))),
                "features": len(kitchen.training_features_list),
                "time_range": str(TimeRange.parse_timerange(settings["timerange"])),
            }
        )
    )


if __name__ == "__main__":
    main()
