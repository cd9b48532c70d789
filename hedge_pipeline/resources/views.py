"""How MLflow's UI shows an experiment: words, and a view with the columns and charts that count.

MLflow keeps what a person shares with "Share view" in a tag of the experiment; the same tag,
written here, spares everybody the clicking. A UI that does not know it shows its defaults.
"""

from __future__ import annotations

import json
from typing import Any

VIEW = "hedge"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_WORKFLOW = "workflowType=machine_learning"  # otherwise the UI opens as one for language models
_COLUMNS = (
    "accuracy",
    "base_rate_accuracy",
    "skill_1e4_nats",
    "labels",
    "skill_1e4_nats_lo",
    "skill_1e4_nats_hi",
)
_SAME_FOR_ALL = ("accuracy", "skill_1e4_nats")
_VERDICT = "tags.`hedge.verdict`"
_BEFORE = {"attributes.`Run Name`": 210, "runDateAndNestInfo": 150, _VERDICT: 120}
_LINES = ("live/accuracy", "live/base_rate_accuracy", "live/skill_1e4_nats", "gate/evidence_log10")
_BARS = ("live_total/accuracy", "live_total/skill_1e4_nats")


def page_of_runs(experiment: str, *, charts: bool = False) -> str:
    """Where in MLflow's UI the versions of an experiment are shown, as a table or as charts."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&{_WORKFLOW}{mode}"


def page_of_run(experiment: str, run: str) -> str:
    """Where a run is shown."""
    return f"#/experiments/{experiment}/runs/{run}?{_WORKFLOW}"


def page_of_model(name: str) -> str:
    """Where a registered model is shown."""
    return f"#/models/{name}?{_WORKFLOW}"


HOME = f"#/experiments?{_WORKFLOW}"


def experiment_tags(symbol: str, experiment: str, model: str, dagster_url: str) -> dict[str, str]:
    """Tags of a symbol's experiment: description with links, kind, and the view.

    Args:
        symbol: ticker symbol.
        experiment: its identifier.
        model: name of the registered model.
        dagster_url: of Dagster's UI; empty = not known.
    """
    words = (
        f"Will {symbol} be higher when the horizon is over? "
        f"[Versions]({page_of_runs(experiment)}), "
        f"[accuracy over sessions]({page_of_runs(experiment, charts=True)}), "
        f"[champion]({page_of_model(model)})"
    )
    if dagster_url:
        page = f"{dagster_url}/assets/model_performance?view=partitions&partition={symbol}"
        words += f", [Dagster]({page})"
    return {
        "mlflow.note.content": words,
        "mlflow.experimentKind": "custom_model_development",
        VIEW_TAG: json.dumps(_view()),
    }


def _view() -> dict[str, Any]:
    names = [f"live_total/{name}" for name in _COLUMNS]
    names[4:4] = [f"out_of_time_total/{name}" for name in _SAME_FOR_ALL]
    columns = {f"metrics.`{name}`": 45 + 8 * len(name) for name in names}  # as wide as its header
    charts = [{**_chart("LINE", name), **_LINE, "selectedMetricKeys": [name]} for name in _LINES]
    charts += [_chart("BAR", name) for name in _BARS]
    section = {"uuid": VIEW, "name": "live, by session and version", "display": True}
    return {
        "selectedColumns": [_VERDICT, *columns],
        "columnOrder": [*_BEFORE, *columns],  # a width counts only with a place
        "columnWidths": {**_BEFORE, **columns},
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # keeps our section first
        "compareRunSections": [
            {**section, "isReordered": True, "deleted": False, "isGenerated": False}
        ],
        "compareRunCharts": charts,
    }


_LINE = {
    "xAxisKey": "step",
    "selectedXAxisMetricKey": "",
    "selectedYAxisMetricKey": "",
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
    "lineSmoothness": 0,
    "scaleType": "linear",
    "xAxisScaleType": "linear",
    "displayPoints": True,
    "range": {},
}


def _chart(kind: str, metric: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"{VIEW}-{metric}",
        "metricSectionId": VIEW,
        "metricKey": metric,
        "deleted": False,
        "isGenerated": False,
    }
