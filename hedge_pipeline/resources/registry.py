"""MLflow as the window on the loop: versions, their scores by session, and three aliases.

Everything shown there is a projection of the store. Publishing compares and adds what is missing,
so it may fail, be killed or be late, and the next call completes it, each thing once. The loop
itself never waits for MLflow and never reads from it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import math
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from hedge_pipeline import insight, scratch, stages
from hedge_pipeline.learning import gate, scoring
from hedge_pipeline.learning.training import ModelError
from hedge_pipeline.market.tables import PERFORMANCE, PROMOTIONS
from hedge_pipeline.resources import views
from hedge_pipeline.stages import Deployment
from hedge_pipeline.storage import forgotten_before

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from hedge_pipeline.learning.ledger import Ledger
    from hedge_pipeline.learning.paired import SessionPair
    from hedge_pipeline.learning.training import Model, ModelCard

log = logging.getLogger(__name__)

ABANDONED = dt.timedelta(days=1)
DATABASES = ("postgresql", "mysql", "mssql")
PORTS = {"postgresql": 5432, "mysql": 3306}
KNOCK_SECONDS = 5.0
ALONE_SECONDS = 120.0
VERSION_TAG = "hedge.version"
SCORED_TAG = "hedge.scored_through"
OUT_OF_TIME_TAG = "hedge.out_of_time"
OUT_OF_TIME_SESSIONS = 5
SIGNALS_TAG = "hedge.signals"
ROLE_PREFIX = {"served": "live", "baseline": "baseline", "newest": "newest"}


class RegistryError(RuntimeError):
    """MLflow cannot be reached or refuses; the store is complete, publish again later."""


def _knock(uri: str) -> None:
    """Connects to a database server and hangs up: MLflow insists on one that is down for 100 s.

    Raises:
        OSError: nobody listens there.
    """
    place = urlsplit(uri)
    port = next((x for kind, x in PORTS.items() if place.scheme.startswith(kind)), None)
    if port is not None and place.hostname:
        socket.create_connection((place.hostname, place.port or port), KNOCK_SECONDS).close()


def experiment_name(symbol: str) -> str:
    """The experiment of a symbol."""
    return f"{symbol}: direction over the horizon"


def model_name(symbol: str) -> str:
    """The registered model of a symbol."""
    return f"hedge-{symbol}"


class MlflowRegistry:
    """Publishes a deployment's versions and scores to one MLflow tracking store.

    Args:
        tracking_uri: of MLflow; a SQLite file is created with its folder.
        artifacts: folder or URL for artifacts of new experiments; a tracking server chooses itself.
        plots: draw the importance of every new version; otherwise only when asked.
        newest: versions to keep of a model, see `kept_versions`; None = all.
        dagster_url: address of Dagster's UI, for links to its runs; empty = not known.
        ui_url: address of MLflow's UI; empty = the tracking server's, if it is one.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        artifacts: str | None = None,
        plots: bool = True,
        newest: int | None = None,
        dagster_url: str = "",
        ui_url: str = "",
    ) -> None:
        self.newest = newest
        self.dagster_url = dagster_url.rstrip("/")
        self.ui_url = (ui_url or _server(tracking_uri)).rstrip("/")
        self.tracking_uri = tracking_uri
        self.artifacts = None if self.tracking_server else artifacts
        self.plots = plots
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._runs: dict[tuple[str, int], str] = {}
        self._registered: dict[tuple[str, int], str] = {}
        self._scored: dict[str, str] = {}
        self._out_of_time: set[str] = set()
        self._through: dict[str, str] = {}
        self._newest_drawn: dict[str, int] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._tags: dict[str, dict[str, str]] = {}
        self._descriptions: dict[str, str] = {}
        self._pairs: dict[str, dict[str, SessionPair]] = {}
        self._refused: dict[str, str] = {}
        self._left: dict[str, bytes] = {}

    # -- publishing ----------------------------------------------------------------------------

    def publish(self, deployment: Deployment, symbol: str, *, source_run: str | None = None) -> int:
        """Adds what MLflow lacks of the symbol's judged versions, scores and aliases.

        Args:
            deployment: whose store to show.
            symbol: ticker symbol.
            source_run: identifier of the Dagster run that publishes, kept as a tag.

        Returns:
            Number of versions added.

        Raises:
            RegistryError: MLflow cannot be reached, nothing is lost; or the file of a version is
                refused, everything else is published.
        """
        self._refused.pop(symbol, None)
        try:
            with self._reachable(), self._alone(symbol):
                self._open(symbol)
                # one view of the log for all of it: another process may add to it meanwhile
                ledger = deployment.ledger(symbol)
                added = self._publish_versions(deployment, ledger, source_run)
                self._publish_scores(deployment, ledger)
                self._publish_out_of_time(deployment, ledger)
                self._publish_summary(deployment, ledger)
                self._publish_aliases(ledger)
        except BaseException:
            # what failed may have been done all the same: the next publication looks again
            self._experiments.pop(symbol, None)
            raise
        if symbol in self._refused:
            raise RegistryError(f"{self._refused[symbol]}; everything else is published")
        return added

    def publish_signals(self, deployment: Deployment, symbol: str, found: dict[str, Any]) -> None:
        """Shows the signal report of a symbol in a run of its own, which is kept up to date.

        Args:
            deployment: whose sessions the report is about.
            symbol: ticker symbol.
            found: see `stages.signal_report`.

        Raises:
            RegistryError: MLflow cannot be reached.
        """
        from hedge_pipeline.levels.trades import in_markdown
        from hedge_pipeline.resources import plots

        overall = found["overall"]
        with self._reachable(), self._alone(symbol):
            self._open(symbol)
            run_id = self._signal_run(symbol)
            words = f"{overall['signals']} signals in {found['sessions']} sessions"
            note = f"{words}\n\n{in_markdown(found)}"
            self.client.set_tag(run_id, "mlflow.note.content", note)
            self.client.set_tag(run_id, "hedge.sessions", str(found["sessions"]))
            self.client.log_dict(run_id, found, "signal_report.json")
            if found["predictions_scored"]:
                figure = plots.confidence(found["reliability"], symbol)
                self.client.log_figure(run_id, figure, "reliability.png")
            if overall["scored"]:
                figure = plots.false_positives(found["by_session"], symbol)
                self.client.log_figure(run_id, figure, "false_positives.png")
            metrics = _signal_metrics(deployment, found)
            known = {
                (name, point.step, point.value)
                for name in {metric.key for metric in metrics}
                for point in self.client.get_metric_history(run_id, name)
            }
            new = [m for m in metrics if (m.key, m.step, m.value) not in known]
            self.client.log_batch(run_id, metrics=new)

    def _signal_run(self, symbol: str) -> str:
        """The run that shows the symbol's signals; made on first use."""
        experiment = self._experiments[symbol]
        known = self.client.search_runs([experiment], f"tags.`{SIGNALS_TAG}` = '{symbol}'")
        if known:
            return str(known[0].info.run_id)
        run = self.client.create_run(
            experiment, tags={SIGNALS_TAG: symbol}, run_name=f"{symbol} signals"
        )
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def draw(self, deployment: Deployment, symbol: str) -> None:
        """Draws the plots of the newest published version, unless this process has done so.

        Raises:
            RegistryError: MLflow cannot be reached; the next call draws them.
        """
        versions = [v for s, v in self._registered if s == symbol]
        if not versions or self._newest_drawn.get(symbol) == max(versions):
            return
        newest = max(versions)
        card = deployment.shelf.card(symbol, newest)
        with self._reachable():
            self._log_plots(self._runs[(symbol, newest)], card, deployment, symbol)
        self._newest_drawn[symbol] = newest

    def prune(
        self, deployment: Deployment, symbol: str, abandoned: dt.timedelta = ABANDONED
    ) -> int:
        """Deletes the versions that are not kept, with their runs; returns how many.

        A publication that was killed has left models that no version names: they go too, and count,
        once they are old enough to be nobody's work.

        The files of the store stay, and so do the scores in `performance`. What is deleted takes
        room until MLflow's garbage collection, see `resources/upkeep.py`.

        Raises:
            RegistryError: MLflow cannot be reached; the next call goes on.
        """
        from mlflow.exceptions import MlflowException

        kept = kept_versions(deployment.ledger(symbol), self.newest)
        with self._reachable(), self._alone(symbol):
            self._open(symbol)
            owned = {v for s, v in {**self._runs, **self._registered} if s == symbol}
            for version in sorted(owned - kept):
                key = (symbol, version)
                number, run_id = self._registered.get(key), self._runs.get(key)
                if number is not None:
                    known = self.client.get_model_version(model_name(symbol), number)
                    with contextlib.suppress(MlflowException):  # deleted before a kill
                        self.client.delete_logged_model(str(known.source).rpartition("/")[2])
                if run_id is not None:
                    self.client.delete_run(run_id)
                if number is not None:
                    self.client.delete_model_version(model_name(symbol), number)
                self._registered.pop(key, None)
                self._runs.pop(key, None)
            orphans = self._delete_orphans(symbol, abandoned)
        return len(owned - kept) + orphans

    def _delete_orphans(self, symbol: str, abandoned: dt.timedelta) -> int:
        """Deletes models without a version that are at least so old; returns how many."""
        versions = self.client.search_model_versions(f"name='{model_name(symbol)}'")
        named = {str(version.source).rpartition("/")[2] for version in versions}
        before = 1000 * (time.time() - abandoned.total_seconds())
        orphans, token = [], None
        while True:
            page = self.client.search_logged_models(
                [self._experiments[symbol]], page_token=token, max_results=50
            )
            orphans += [
                model.model_id
                for model in page
                if model.model_id not in named and model.creation_timestamp <= before
            ]
            token = page.token
            if not token:
                break
        for model_id in orphans:
            self.client.delete_logged_model(model_id)
        return len(orphans)

    def versions(self, symbol: str) -> frozenset[int]:
        """Our versions that are registered.

        Raises:
            RegistryError: MLflow cannot be reached.
        """
        with self._reachable():
            self._open(symbol)
        return frozenset(version for owner, version in self._registered if owner == symbol)

    def links(self, symbol: str) -> dict[str, str]:
        """Pages of MLflow's UI on a published symbol; none if its address is not known."""
        if not self.ui_url or symbol not in self._experiments:
            return {}
        experiment = self._experiments[symbol]
        found = {
            "mlflow_model": views.page_of_model(model_name(symbol)),
            "mlflow_versions": views.page_of_runs(experiment),
            "mlflow_charts": views.page_of_runs(experiment, charts=True),
        }
        versions = [version for owner, version in self._runs if owner == symbol]
        if versions:
            newest = self._runs[(symbol, max(versions))]
            found["mlflow_run"] = views.page_of_run(experiment, newest)
        return {name: f"{self.ui_url}/{page}" for name, page in found.items()}

    @property
    def tracking_server(self) -> bool:
        """Whether MLflow is a server, and not a database or a folder."""
        return bool(_server(self.tracking_uri))

    def ping(self) -> str:
        """The address, if MLflow answers there.

        Raises:
            RegistryError: it does not.
        """
        with self._reachable():
            self.client.search_experiments(max_results=1)
        return self._shown_uri

    # -- opening -------------------------------------------------------------------------------

    @property
    def client(self) -> MlflowClient:
        """The client, opened on first use."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            # by default seven times two minutes; who publishes again later need not insist
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            logging.getLogger("mlflow").setLevel(logging.WARNING)
            _knock(self.tracking_uri)
            import mlflow

            if self.tracking_uri.startswith("sqlite:///"):
                file = Path(self.tracking_uri.removeprefix("sqlite:///"))
                _create_database(file, self.artifacts)
            elif self.artifacts and self.tracking_uri.startswith(DATABASES):
                _prepare_database(self.tracking_uri, self.artifacts)
            mlflow.set_tracking_uri(self.tracking_uri)
            self._client = mlflow.MlflowClient(self.tracking_uri)
        return self._client

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        """Turns whatever MLflow, its database or a missing driver raise into one line."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            reason = self._without_secrets(str(error).strip().split("\n", 1)[0])[:200]
            raise RegistryError(
                f"MLflow at {self._shown_uri} does not answer ({reason}); "
                "the store is complete and will be published later"
            ) from error

    @contextlib.contextmanager
    def _alone(self, symbol: str) -> Iterator[None]:
        """Nobody else on this machine changes the symbol's part meanwhile.

        A close and a training publish the same version when they end at the same time. What
        somebody else has changed since the last time is read anew.
        """
        with scratch.alone(f"{self.tracking_uri}\n{symbol}", ALONE_SECONDS) as file:
            if file.read() != self._left.get(symbol):
                self._experiments.pop(symbol, None)
            try:
                yield
            finally:
                self._left[symbol] = uuid.uuid4().bytes
                file.seek(0)
                file.write(self._left[symbol])
                file.truncate()
                file.flush()

    @property
    def _shown_uri(self) -> str:
        """The address without user and password."""
        return self._without_secrets(self.tracking_uri)

    def _without_secrets(self, text: str) -> str:
        """The text without the user and the password of the address, in either spelling."""
        credentials = urlsplit(self.tracking_uri).netloc.rpartition("@")[0]
        password = credentials.partition(":")[2]
        for secret in (credentials, password, unquote(password)):
            if secret:
                text = text.replace(secret, "…")
        return text

    def _open(self, symbol: str) -> None:
        if symbol in self._experiments:
            return
        from mlflow.exceptions import MlflowException

        name = experiment_name(symbol)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = f"{self.artifacts}/{symbol}" if self.artifacts else None
            experiment = self.client.create_experiment(name, artifact_location=location)
        else:
            experiment = found.experiment_id
        told = {} if found is None else found.tags
        tags = views.experiment_tags(symbol, experiment, model_name(symbol), self.dagster_url)
        for tag, value in tags.items():
            if told.get(tag) != value:
                self.client.set_experiment_tag(experiment, tag, value)
        try:
            registered = self.client.get_registered_model(model_name(symbol))
        except MlflowException:
            registered = self.client.create_registered_model(model_name(symbol))
        self._descriptions[symbol] = registered.description or ""
        self._aliases[symbol] = {k: str(v) for k, v in registered.aliases.items()}
        self._tags[symbol] = {k: str(v) for k, v in registered.tags.items()}
        self._read_published(symbol, experiment)
        self._experiments[symbol] = experiment

    def _read_published(self, symbol: str, experiment: str) -> None:
        """Learns what is there: runs by version, registered versions, scored sessions."""
        token: str | None = None
        while True:
            page = self.client.search_runs([experiment], max_results=1000, page_token=token)
            for run in page:
                if VERSION_TAG in run.data.tags:
                    self._runs[(symbol, int(run.data.tags[VERSION_TAG]))] = run.info.run_id
                    self._scored[run.info.run_id] = run.data.tags.get(SCORED_TAG, "")
                    if OUT_OF_TIME_TAG in run.data.tags:
                        self._out_of_time.add(run.info.run_id)
            token = page.token
            if not token:
                break
        for version in self.client.search_model_versions(f"name='{model_name(symbol)}'"):
            if VERSION_TAG in version.tags:
                key = (symbol, int(version.tags[VERSION_TAG]))
                self._registered[key] = str(version.version)

    # -- versions ------------------------------------------------------------------------------

    def _publish_versions(
        self, deployment: Deployment, ledger: Ledger, source_run: str | None
    ) -> int:
        entries, symbol = ledger.entries, ledger.symbol
        verdicts = entries[entries["kind"] == "verdict"].sort_values("model_version")
        kept = kept_versions(ledger, self.newest)
        added = 0
        for verdict in verdicts.to_dict("records"):
            version = int(verdict["model_version"])
            if version in kept and (symbol, version) not in self._registered:
                try:
                    model = deployment.shelf.load(symbol, version)
                except ModelError as error:
                    self._refused[symbol] = str(error)
                    continue
                self._publish_version(deployment, model, verdict, source_run)
                added += 1
        return added

    def _publish_version(
        self,
        deployment: Deployment,
        model: Model,
        verdict: dict[Any, Any],
        source_run: str | None,
    ) -> None:
        card = model.card
        key = (card.symbol, card.version)
        when = _milliseconds(verdict["decided_at"])
        run_id = self._runs.get(key) or self._create_run(card, verdict, when, source_run)
        self._runs[key] = run_id
        source, model_id = self._log_model(run_id, model)
        # after the model: MLflow would copy to it, one by one, what the run has by then
        self.client.log_batch(run_id, metrics=_card_metrics(card, when), params=_params(card))
        if self.plots:
            self._log_plots(run_id, card, deployment, card.symbol)
            self._newest_drawn[card.symbol] = card.version
        # before the version: once it is there, nothing of the run is looked at again
        self.client.set_terminated(run_id, end_time=when)
        registered = self.client.create_model_version(
            model_name(card.symbol),
            source=source,
            run_id=run_id,
            model_id=model_id,
            tags={
                VERSION_TAG: str(card.version),
                "hedge.verdict": str(verdict["event"]),
                "hedge.sha256": card.sha256,
            },
            description=str(verdict["reason"]),
        )
        # MLflow's number equals ours unless somebody registered a version by hand
        self._registered[key] = str(registered.version)

    def _create_run(
        self, card: ModelCard, verdict: dict[Any, Any], when: int, source_run: str | None
    ) -> str:
        tags = {
            VERSION_TAG: str(card.version),
            "hedge.symbol": card.symbol,
            "hedge.verdict": str(verdict["event"]),
            "hedge.reason": str(verdict["reason"]),
            "hedge.skill": str(verdict["skill"]),
            "hedge.sha256": card.sha256,
            "mlflow.note.content": f"{verdict['event']}: {verdict['reason']}",
        }
        if source_run:
            tags["dagster.run_id"] = source_run
            tags["dagster.path"] = f"/runs/{source_run}"
        if source_run and self.dagster_url:
            page = f"{self.dagster_url}/runs/{source_run}"
            tags["dagster.url"] = page
            # shown as Markdown, so that it can be clicked
            tags["mlflow.note.content"] += f"\n\n[Dagster run {source_run[:8]}]({page})"
        run = self.client.create_run(
            self._experiments[card.symbol],
            start_time=when,
            tags=tags,
            run_name=f"{card.symbol} v{card.version} to {card.cutoff}",
        )
        return str(run.info.run_id)

    def _log_model(self, run_id: str, model: Model) -> tuple[str, str]:
        import mlflow.xgboost
        import xgboost
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema

        names = model.card.features
        inputs = Schema([ColSpec(DataType.float, name, required=False) for name in names])
        outputs = Schema([ColSpec(DataType.float, "prob_up")])
        # otherwise the files go to the default experiment's place, in the working directory
        mlflow.set_experiment(experiment_id=self._experiments[model.card.symbol])
        info = mlflow.xgboost.log_model(
            model.booster,
            name="model",
            run_id=run_id,
            signature=ModelSignature(inputs, outputs),
            pip_requirements=[f"xgboost=={xgboost.__version__}"],
            model_format="ubj",
        )
        with scratch.folder() as folder:
            card = folder / "model_card.json"
            card.write_bytes(model.card.to_json())
            self.client.log_artifact(run_id, str(card))
        return str(info.model_uri), str(info.model_id)

    def _log_plots(self, run_id: str, card: ModelCard, deployment: Deployment, symbol: str) -> None:
        from hedge_pipeline.resources import plots

        self.client.log_figure(run_id, plots.importance(card.gain, symbol), "importance.png")
        promotions = deployment.store.read(PROMOTIONS, symbols=[symbol])
        figure = plots.evidence(promotions, deployment.rule.needed_evidence, symbol)
        self.client.log_figure(run_id, figure, "evidence.png")
        shares = plots.importance(card.contributions, symbol, "share of contributions (SHAP)")
        self.client.log_figure(run_id, shares, "contributions.png")
        self.client.log_figure(run_id, plots.reliability(deployment, symbol), "reliability.png")

    # -- scores and aliases --------------------------------------------------------------------

    def _publish_scores(self, deployment: Deployment, ledger: Ledger) -> None:
        symbol = ledger.symbol
        through = self._through.get(symbol, "")
        # a session that was folded and scored after the log was read waits for the next time
        folded = ledger.state.last_session or ""
        labels = [x for x in deployment.store.sessions(PERFORMANCE) if through <= x <= folded]
        sums = deployment.scores(symbol, labels)
        sums = sums[sums["model_version"] > 0]
        for version, rows in sums.groupby("model_version", sort=True):
            run_id = self._runs.get((symbol, int(str(version))))
            if run_id is not None:
                self._publish_sessions(deployment, ledger, run_id, rows)
        self._through[symbol] = labels[-1] if labels else through

    def _publish_sessions(
        self, deployment: Deployment, ledger: Ledger, run_id: str, rows: pd.DataFrame
    ) -> None:
        from mlflow.entities import RunTag

        rows = rows[rows["session"] > self._scored.get(run_id, "")]
        if rows.empty:
            return
        # rows made up for after an outage have a mode of their own; a metric has one value
        metrics = [
            metric
            for _, own in rows.groupby(["session", "role"], sort=True)
            for metric in _live_metrics(deployment, own)
        ]
        metrics += _gate_metrics(deployment, ledger, set(rows["session"]))
        metrics += _total_metrics(deployment, ledger.symbol, rows)
        last = str(rows["session"].max())
        self.client.log_batch(run_id, metrics=metrics, tags=[RunTag(SCORED_TAG, last)])
        self._scored[run_id] = last

    def _publish_out_of_time(self, deployment: Deployment, ledger: Ledger) -> None:
        """Scores every version once on the same number of sessions right after its cutoff.

        Whether it served, was followed by a newer one the same night, or was rejected: in that
        column all versions can be compared. One that is not in the store, or after whose cutoff
        sessions were forgotten, has no such score.
        """
        from mlflow.entities import RunTag

        symbol, folded = ledger.symbol, ledger.state.last_session
        cutoffs: dict[int, str] = {}
        for owner, version in sorted(self._runs):
            if owner == symbol and self._runs[owner, version] not in self._out_of_time:
                with contextlib.suppress(ModelError):  # of another store, or said when published
                    cutoffs[version] = deployment.shelf.card(symbol, version).cutoff
        kept, after = forgotten_before(deployment.store) or "", deployment.calendar.following
        cutoffs = {version: x for version, x in cutoffs.items() if (after(x) or kept) >= kept}
        if not cutoffs or folded is None:
            return
        settled = stages.settled_sessions(deployment, symbol, after=min(cutoffs.values()))
        for version, cutoff in cutoffs.items():
            later = [x for x in settled if cutoff < x <= folded][:OUT_OF_TIME_SESSIONS]
            if len(later) < OUT_OF_TIME_SESSIONS:
                continue
            try:
                model = deployment.shelf.load(symbol, version)
            except ModelError:  # its publication has said so
                continue
            sums = insight.out_of_time(deployment, ledger, model, later)
            metrics = _out_of_time_metrics(deployment, sums)
            told = RunTag(OUT_OF_TIME_TAG, f"{later[0]} to {later[-1]}")
            run_id = self._runs[symbol, version]
            self.client.log_batch(run_id, metrics=metrics, tags=[told])
            self._out_of_time.add(run_id)

    def _publish_summary(self, deployment: Deployment, ledger: Ledger) -> None:
        """What holds of the symbol now, as tags of its registered model."""
        symbol, state = ledger.symbol, ledger.state
        known = self._pairs.setdefault(symbol, {})
        helps = insight.retraining_value(deployment, symbol, known=known)
        wanted = {
            "hedge.skill": state.status.value,
            "hedge.evidence": gate.evidence_in_words(state, deployment.rule),
            "hedge.trust": f"{gate.trust(state, deployment.rule):.3f}",
            "hedge.feature_drift": stages.feature_drift(deployment, symbol).in_words(),
            "hedge.performance_drift": stages.performance_drift(deployment, symbol).in_words(),
            "hedge.retraining": helps.in_words(),
            "hedge.promotions": str(int((ledger.entries["event"] == "promote").sum())),
        }
        for name, value in wanted.items():
            if self._tags[symbol].get(name) != value:
                self.client.set_registered_model_tag(model_name(symbol), name, value)
        self._tags[symbol] = wanted
        words = _model_description(ledger, wanted, self._experiments[symbol], self.dagster_url)
        if self._descriptions[symbol] != words:
            self.client.update_registered_model(model_name(symbol), words)
            self._descriptions[symbol] = words

    def _publish_aliases(self, ledger: Ledger) -> None:
        symbol = ledger.symbol
        wanted: dict[str, str] = {}
        # a version whose file is refused is not there, and not served either
        shown = [version for version in ledger.accepted if (symbol, version) in self._registered]
        if shown:
            wanted["challenger"] = self._registered[(symbol, shown[-1])]
        if shown and ledger.champion is not None:
            wanted["champion"] = wanted["challenger"]
        if ledger.pinned in shown:
            wanted["pinned"] = self._registered[(symbol, ledger.pinned)]
        present = self._aliases[symbol]
        for alias, version in wanted.items():
            if present.get(alias) != version:
                self.client.set_registered_model_alias(model_name(symbol), alias, version)
        for alias in {"challenger", "champion", "pinned"} & set(present) - set(wanted):
            self.client.delete_registered_model_alias(model_name(symbol), alias)
        self._aliases[symbol] = wanted


def _model_description(
    ledger: Ledger, summary: dict[str, str], experiment: str, dagster_url: str
) -> str:
    """Which version is champion and why, what holds of the symbol, and where to look further."""
    verdicts = ledger.entries[ledger.entries["kind"] == "verdict"].sort_values("model_version")
    champion, pinned = ledger.champion, ledger.pinned
    if champion is None:
        lines = [f"**No champion**: {summary['hedge.evidence']}."]
    else:
        own = verdicts[verdicts["model_version"] == champion].iloc[-1]
        # skill may have been proven after its verdict, which then says the opposite
        promoted = own["event"] == "promote"
        reason = own["reason"] if promoted else f"skill {summary['hedge.evidence']}"
        lines = [f"**Champion: version {champion}**. {reason}."]
    if pinned is not None:
        lines.append(f"Version {pinned} is served: an operator has pinned it.")
    lines += [
        f"{summary['hedge.retraining'].capitalize()}.",
        "`champion` is set only while skill is proven; `challenger` is the newest accepted "
        "version, which predicts; `pinned` the one an operator serves instead.",
    ]
    links = (
        f"[versions]({views.page_of_runs(experiment)}), "
        f"[live accuracy over sessions]({views.page_of_runs(experiment, charts=True)})"
    )
    if dagster_url:
        page = f"{dagster_url}/assets/champion_model?view=partitions&partition={ledger.symbol}"
        links += f", [Dagster]({page})"
    return "\n\n".join([*lines, links])


def kept_versions(ledger: Ledger, newest: int | None) -> frozenset[int]:
    """Judged versions that MLflow keeps.

    Those that were ever champion or pinned, the baseline, the newest accepted one, and the newest.

    Args:
        ledger: promotion log of the symbol.
        newest: how many of the newest; None = all are kept.
    """
    if newest is None:
        return ledger.judged
    verdicts = ledger.entries[ledger.entries["kind"] == "verdict"]
    promoted = verdicts.loc[verdicts["event"] == "promote", "model_version"]
    pinned = ledger.entries.loc[ledger.entries["kind"] == "override", "model_version"]
    champion = () if ledger.champion is None else (ledger.champion,)
    return frozenset(
        {
            *(int(version) for version in (*promoted, *pinned)),
            *champion,
            *ledger.accepted[:1],
            *ledger.accepted[-1:],
            *sorted(ledger.judged)[-newest:],
        }
    )


def _server(tracking_uri: str) -> str:
    """The address of a tracking server without user and password; empty if it is a database."""
    address = urlsplit(tracking_uri)
    if address.scheme not in ("http", "https"):
        return ""
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"


def _prepare_database(uri: str, artifacts: str) -> None:
    """Makes MLflow's tables on a database server, with the place of the default experiment."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, artifacts)


def _create_database(path: Path, artifacts: str | None) -> None:
    """Creates MLflow's SQLite file whole or not at all, if there is none.

    Its dozens of migrations cannot be taken up again where they were killed.
    """
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():  # MLflow would try again for two minutes
        raise IsADirectoryError(f"{path} is a folder, not a database")
    if path.exists():
        return
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        new = Path(folder) / path.name
        place = artifacts or DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
        made = SqlAlchemyStore(f"sqlite:///{new}", place)
        made.engine.dispose()
        with contextlib.suppress(FileExistsError):  # another process was faster
            path.hardlink_to(new)


def _params(card: ModelCard) -> list[Any]:
    from mlflow.entities import Param

    values = {
        "symbol": card.symbol,
        "version": card.version,
        "first_session": card.first_session,
        "cutoff": card.cutoff,
        "sessions": card.sessions,
        "horizon_bars": card.horizon_bars,
        "data_hash": card.data_hash,
        "schema_hash": card.schema_hash,
        "parameters_from": card.parameters_from,
        **card.plan,
    }
    return [Param(name, str(value)) for name, value in values.items()]


def _card_metrics(card: ModelCard, when: int) -> list[Metric]:
    from mlflow.entities import Metric

    values = {
        "training/rows": card.rows,
        "training/effective_rows": card.effective_rows,
        "training/base_rate": card.base_rate,
        "training/in_sample_skill_1e4_nats": 1e4 * card.in_sample_skill,
        "training/margin_spread": card.spread,
    }
    return [Metric(name, _to_six_digits(float(x)), when, 0) for name, x in values.items()]


def _gate_metrics(deployment: Deployment, ledger: Ledger, sessions: set[str]) -> list[Metric]:
    """Evidence and trust after the sessions."""
    folds = ledger.entries[ledger.entries["kind"] == "fold"]
    found = []
    for row in folds[folds["session"].isin(sessions)].to_dict("records"):
        values = {
            "evidence_log10": float(row["evidence"]) / math.log(10),
            "trust": float(row["trust"]),
            "proven": float(row["skill"] == "proven"),
        }
        found += _metrics(deployment, str(row["session"]), "gate", values)
    return found


def _total_metrics(deployment: Deployment, symbol: str, rows: pd.DataFrame) -> list[Metric]:
    """Scores of the version from its first session to each one, by role, with intervals.

    Single sessions scatter widely; the last of these is what versions are compared by.
    """
    sums = deployment.scores(symbol)
    sums = sums[sums["labels"] > 0]
    found = []
    streams = rows[["session", "role", "model_version"]].drop_duplicates()
    for row in streams.to_dict("records"):
        label, role = str(row["session"]), str(row["role"])
        own = sums[(sums["role"] == role) & (sums["model_version"] == row["model_version"])]
        own = own[own["session"] <= label]
        found += _totals(deployment, own, f"{ROLE_PREFIX[role]}_total", label)
    return found


def _totals(deployment: Deployment, sums: pd.DataFrame, prefix: str, label: str) -> list[Metric]:
    """Scores over sessions with intervals; the last of them is `label`."""
    score = scoring.score(sums, deployment.horizon, draws=500)
    skill = scoring.skill(sums, draws=500)
    values = {
        "accuracy": score.value,
        "accuracy_lo": score.lo,
        "accuracy_hi": score.hi,
        "base_rate_accuracy": score.base_rate,
        "skill_1e4_nats": score.skill,
        "skill_1e4_nats_lo": skill.lo,
        "skill_1e4_nats_hi": skill.hi,
        "log_loss": score.log_loss,
        "brier": sums["brier"].sum() / score.n if score.n else math.nan,
        "labels": float(score.n),
    }
    return _metrics(deployment, label, prefix, values)


def _out_of_time_metrics(deployment: Deployment, sums: pd.DataFrame) -> list[Metric]:
    """Scores of one version by session, and of all of them."""
    found = []
    for row in sums.to_dict("records"):
        values = {
            **scoring.shares(row),
            "probability_spread": float(row["spread"]),
            "calibration_slope": float(row["calibration_slope"]),
        }
        found += _metrics(deployment, str(row["session"]), "out_of_time", values)
    last = str(sums["session"].iloc[-1])
    return found + _totals(deployment, sums, "out_of_time_total", last)


def _metrics(
    deployment: Deployment, label: str, prefix: str, values: Mapping[str, float]
) -> list[Metric]:
    """The values that are known, to be read: six digits; at the session's close, by its ordinal."""
    from mlflow.entities import Metric

    when = _milliseconds(deployment.calendar.session(label).closes)
    step = deployment.calendar.ordinal(label)
    return [
        Metric(f"{prefix}/{name}", _to_six_digits(float(x)), when, step)
        for name, x in values.items()
        if not math.isnan(x)
    ]


def _to_six_digits(value: float) -> float:
    """The value to six significant digits; counts stay what they are."""
    return value if value.is_integer() else float(f"{value:.6g}")


def _live_metrics(deployment: Deployment, rows: pd.DataFrame) -> list[Metric]:
    """Scores of one version, role and session, whatever the modes of its rows."""
    label, role = str(rows["session"].iloc[0]), str(rows["role"].iloc[0])
    stream = (str(rows["symbol"].iloc[0]), label, int(rows["model_version"].iloc[0]), role)
    row = rows.sum(numeric_only=True)
    one_mode = len(rows) == 1
    values = {
        **scoring.shares(row.to_dict()),
        "raw_log_loss": row["raw_log_loss"] / (float(row["labels"]) or math.nan),
        "probability_spread": row["spread"]
        if one_mode
        else insight.probability_spread(deployment, *stream),
        "calibration_slope": insight.calibration_slope(deployment, *stream),
    }
    return _metrics(deployment, label, ROLE_PREFIX[role], values)


def _signal_metrics(deployment: Deployment, found: dict[str, Any]) -> list[Metric]:
    """What is known of all signals at the last session, and the false positives of every one."""
    from mlflow.entities import Metric

    names = {"lo": "win_rate_lo", "hi": "win_rate_hi"}
    values: list[tuple[str, str, object]] = [
        (names.get(name, name), found["last_session"], value)
        for name, value in found["overall"].items()
    ]
    values += [
        ("false_positive_rate", label, session["false_positive_rate"])
        for label, session in found["by_session"].items()
    ]
    metrics = []
    for name, label, value in values:
        if label is None or not isinstance(value, int | float):
            continue
        when = _milliseconds(deployment.calendar.session(label).closes)
        step = deployment.calendar.ordinal(label)
        metrics.append(Metric(f"signals/{name}", _to_six_digits(float(value)), when, step))
    return metrics


def _milliseconds(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1000)
