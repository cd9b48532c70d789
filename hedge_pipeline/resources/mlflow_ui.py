"""MLflow's web server, whose UI opens on trained models with the columns and charts that count.

What the UI shows first is up to the browser's storage, and where that is empty, to MLflow: a view
for language models, an assistant over a quarter of the page, and a table of runs without metrics;
neither the kind nor the view of an experiment has a say in it. So the page is sent with a script
that fills in what a browser has not chosen yet. Whoever chooses otherwise keeps their choice.

Uvicorn serves `hedge_pipeline.resources.mlflow_ui:app`, and so does `mlflow server --app-name
hedge`.
"""

from __future__ import annotations

from pathlib import Path

from mlflow.server import app as files
from mlflow.server.fastapi_app import app
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from hedge_pipeline.resources.views import VIEW_TAG

__all__ = ["app"]

_CHOICES = """<script>
try {
  const once = (name, value) =>
    localStorage.getItem(name) === null && localStorage.setItem(name, value);
  once("mlflow.workflowType_v1", '"machine_learning"');
  once("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  const request = new XMLHttpRequest();
  request.open("POST", "ajax-api/2.0/mlflow/experiments/search", false);
  request.setRequestHeader("Content-Type", "application/json");
  request.send('{"max_results": 1000}');
  for (const experiment of JSON.parse(request.responseText).experiments || []) {
    const view = (experiment.tags || []).find((tag) => tag.key === "VIEW_TAG");
    const key = JSON.stringify([experiment.experiment_id]);
    if (view) once(`MLflowLocalStorage-1.1-ExperimentPage-${key}-ReactComponentState`, view.value);
  }
} catch (error) {
  console.warn(error);
}
</script>""".replace("VIEW_TAG", VIEW_TAG)


def _index(_request: Request) -> HTMLResponse:
    page = Path(str(files.static_folder), "index.html").read_text("utf-8")
    page = page.replace("<head>", f"<head>{_CHOICES}", 1)
    return HTMLResponse(page, headers={"Cache-Control": "no-cache"})


# before the catch-all of MLflow's own routes; its checks of host and origin come before both
app.router.routes.insert(0, Route("/", _index))
