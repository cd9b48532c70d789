"""Jobs: what they do to the market tables or the models."""

import dagster as dg

from hedge_pipeline.assets.champion_model import champion_model
from hedge_pipeline.assets.model_performance import model_performance
from hedge_pipeline.assets.trained_model import trained_model

TRAIN_LANE = {"hedge/lane": "train"}

train_model = dg.define_asset_job(
    "train_model",
    selection=[trained_model, champion_model, model_performance],
    description="Fit a candidate for a symbol, judge it, score every version.",
    tags=TRAIN_LANE,
)
