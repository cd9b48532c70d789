"""The deployment files agree with the code and with each other, and what they run exists."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped]
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.tags import BACKFILL_ID_TAG
from dagster._grpc.types import ExecuteRunArgs
from typer.testing import CliRunner

from hedge_pipeline.cli import app
from hedge_pipeline.resources.upkeep import delete_old_runs
from hedge_pipeline.service import Ports, commands, pages
from hedge_pipeline.settings import Settings, load_settings
from hedge_pipeline_tests.databases import Postgres, postgres
from hedge_pipeline_tests.replays import environment, hedge, one_after_the_other
from hedge_pipeline_tests.runs import code_location
from hedge_pipeline_tests.test_backup import s3

__all__ = ["postgres", "s3"]  # fixtures

REPOSITORY = Path(__file__).resolve().parent.parent
DEPLOY = REPOSITORY / "deploy"
PROGRAMS = {"hedge", "dagster", "dagster-daemon", "python", "mlflow"}
ALIASES = {str(field.alias) for field in Settings.model_fields.values()}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def ours() -> dict[str, dict[str, Any]]:
    """The services that run our image."""
    return {k: v for k, v in compose()["services"].items() if v.get("image") == "hedge_pipeline"}


# -- what the tools for such files say -------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("hadolint", "Dockerfile"),
        ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml"),
    ],
)
def test_a_linter_of_such_files_finds_nothing(command: tuple[str, ...]) -> None:
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [program, *command[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- the image -------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_copies_only_what_is_there_and_sent_to_the_builder() -> None:
    sent = {x[1:] for x in (REPOSITORY / ".dockerignore").read_text().split() if x[0] == "!"}
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for name in rest.split()[:-1]:
                assert (REPOSITORY / name).exists()
                assert name in sent


def test_the_image_runs_as_nobody_special_and_keeps_everything_in_one_folder() -> None:
    found = instructions()
    assert [word for word, _ in found].count("FROM") == 2
    assert ("USER", "10001:10001") in found
    assert "VOLUME" not in [word for word, _ in found]  # Railway refuses it
    (made,) = (rest for word, rest in found if word == "RUN" and "useradd" in rest)
    assert made.endswith("mkdir /data && chown hedge:hedge /data")  # a named volume gets its owner
    (variables,) = (rest for word, rest in found[-8:] if word == "ENV")
    assert {"HEDGE_DATA_URL=/data", "DAGSTER_HOME=/data/dagster_home"} <= set(variables.split())
    last = [json.loads(rest) for word, rest in found if word == "CMD"]
    assert last == [["hedge", "up", "--headless"]]


def pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[\w+\])?==(\S+)", path.read_text(), re.MULTILINE)
    return dict(found)


def test_the_image_installs_what_was_tested_without_cuda_and_tools() -> None:
    tested, installed = pins(REPOSITORY / "requirements.lock"), pins(DEPLOY / "requirements.lock")
    assert installed.pop("xgboost-cpu") == tested["xgboost"]
    assert {k: v for k, v in installed.items() if tested.get(k) != v} == {}
    assert not {"xgboost", "pytest", "mypy", "moto", "duckdb", "optuna"} & set(installed)
    assert {"s3fs", "boto3", "psycopg2-binary", "dagster-postgres"} <= set(installed)


@pytest.mark.parametrize("where", [REPOSITORY, DEPLOY], ids=["project", "image"])
def test_every_locked_dependency_has_its_hashes(where: Path) -> None:
    text = (where / "requirements.lock").read_text().replace("\\\n", " ")
    lines = [x for x in text.splitlines() if x.strip() and not x.lstrip().startswith("#")]
    assert len(lines) > 50
    for line in lines:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


# -- what the documents say ------------------------------------------------------------------------


def shell_blocks(path: Path) -> str:
    """Every command of a document, continued lines joined, without what is fed to a file."""
    found = "\n".join(re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL))
    return re.sub(r"<<'END'.*?^END$", "", found.replace("\\\n", " "), flags=re.DOTALL | re.M)


def hedge_commands(text: str) -> set[tuple[str, ...]]:
    """Commands of `hedge` in code, each up to what is not part of it."""
    lines = [*re.findall(r"`([^`\n]+)`", text), *text.splitlines()]
    found = set()
    for line in lines:
        words = line.split("#")[0].replace("docker exec hedge", "").split()
        if words[:3] == ["railway", "ssh", "--"]:
            words = words[3:]
        if words[:1] == ["hedge"] and len(words) > 1:
            found.add(tuple(words[1:]))
    return found


DOCUMENTS = (
    DEPLOY / "README.md",
    DEPLOY / "railway" / "README.md",
    REPOSITORY / "docs" / "operations.md",
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_command_a_document_names_exists_with_its_options(path: Path) -> None:
    text = shell_blocks(path) + "\n" + re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    found = hedge_commands(text)
    assert found
    for words in found:
        name = next(x for x in words if not x.startswith("-"))
        options = {x.strip("[],") for x in words if x.strip("[],").startswith("--")}
        said = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
        assert said.exit_code == 0, words
        plain = re.sub(r"\x1b\[[0-9;]*m", "", said.output)
        assert {x for x in options if x not in plain} == set(), words


def test_the_variables_of_the_documents_are_those_of_the_compose_file() -> None:
    (block,) = re.findall(r"<<'END'\n(.*?)\nEND", (DEPLOY / "README.md").read_text(), re.DOTALL)
    named = {line.split("=", 1)[0] for line in block.splitlines()}
    asked = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    assert asked <= named
    assert named - asked <= ALIASES
    used = set(re.findall(r"\{\$(\w+)\}", (DEPLOY / "Caddyfile").read_text()))
    assert used <= set(compose()["services"]["proxy"]["environment"])


# -- compose ---------------------------------------------------------------------------------------


def test_only_the_proxy_can_be_reached_from_outside() -> None:
    assert [name for name, x in compose()["services"].items() if "ports" in x] == ["proxy"]
    text = (DEPLOY / "Caddyfile").read_text()
    sites = re.findall(r"^\{\$HEDGE_HOST\}[^{]*\{(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    assert len(sites) == 2
    assert all("import guarded" in site for site in sites)
    assert "basic_auth" in text


@pytest.mark.parametrize("name", sorted(ours()))
def test_a_container_is_read_only_and_has_no_rights(name: str) -> None:
    service = ours()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["tmpfs"] == ["/tmp"]
    assert service["volumes"] == ["data:/data"]
    assert service["command"][0] in PROGRAMS | {"sh"}
    assert set(service["depends_on"]) <= set(compose()["services"])
    for variable in service["environment"]:
        if variable.startswith("HEDGE_") and variable != "HEDGE_CODE_HOST":
            assert variable in ALIASES


def test_nobody_looks_for_the_tables_before_they_are_made() -> None:
    """And nobody else than the code server's start, which ends all runs, calls runs dead."""
    found = ours()
    assert [name for name, x in found.items() if "--prepare" in str(x["command"])] == ["code"]
    for name in ("daemon", "webserver"):
        assert found[name]["depends_on"] == {"code": {"condition": "service_healthy"}}
    assert "healthcheck" not in found["daemon"]  # it has the image's: does the service do its work


def test_no_password_is_written_down() -> None:
    for path in (*DEPLOY.rglob("*"), REPOSITORY / "Dockerfile"):
        if path.is_file() and path.suffix in (".yaml", ".json", "") and path.name != "Caddyfile":
            for line in path.read_text().splitlines():
                if "PASSWORD" in line and ":" in line:
                    assert "$" in line or "env:" in line


# -- the others ------------------------------------------------------------------------------------


def test_railway_builds_the_image_and_names_variables_that_exist() -> None:
    found = json.loads((DEPLOY / "railway" / "railway.json").read_text())
    assert (REPOSITORY / found["build"]["dockerfilePath"]).exists()
    assert found["deploy"]["startCommand"] == "hedge up --headless"
    text = (DEPLOY / "railway" / "README.md").read_text()
    named = set(
        re.findall(r"`((?:HEDGE_|MLFLOW_|ALERT_|M[AI][XN]_|RETRAIN_|CACHE_|LOG_)\w+)", text)
    )
    assert named <= ALIASES
    assert {"POLLING_INTERVAL", "RETRAIN_HOUR"} <= set(re.findall(r"`(\w+)`", text))


# what the schema of the chart's version 1.13 allows, where it allows nothing else
CHART: dict[str, set[str]] = {
    "dagsterDaemon": {
        *("enabled", "image", "runCoordinator", "heartbeatTolerance", "env", "envConfigMaps"),
        *("envSecrets", "deploymentLabels", "labels", "nodeSelector", "affinity", "tolerations"),
        *("podSecurityContext", "securityContext", "resources", "livenessProbe", "annotations"),
        *("readinessProbe", "startupProbe", "runMonitoring", "runRetries", "sensors", "schedules"),
        *("schedulerName", "volumeMounts", "volumes", "initContainerResources"),
    },
    "dagsterDaemon.runCoordinator": {"enabled", "type", "config"},
    "dagsterDaemon.runCoordinator.config.queuedRunCoordinator": {
        *("maxConcurrentRuns", "tagConcurrencyLimits", "dequeueIntervalSeconds"),
        *("dequeueNumWorkers", "dequeueUseThreads", "blockOpConcurrencyLimitedRuns"),
    },
    "runLauncher": {"type", "config"},
    "runLauncher.config.k8sRunLauncher": {
        *("image", "imagePullPolicy", "jobNamespace", "loadInclusterConfig", "kubeconfigFile"),
        *("envConfigMaps", "envSecrets", "envVars", "volumeMounts", "volumes", "labels"),
        *("failPodOnRunFailure", "resources", "schedulerName", "securityContext", "runK8sConfig"),
    },
    "retention": {"enabled", "sensor", "schedule", "autoMaterialize"},
    "retention.schedule.purgeAfterDays": {"skipped", "success", "failure", "started"},
    "retention.sensor.purgeAfterDays": {"skipped", "success", "failure", "started"},
    "telemetry": {"enabled"},
    # these may hold anything, but only this is read
    "": {
        *("global", "generatePostgresqlPasswordSecret", "generateCeleryConfigSecret", "rabbitmq"),
        *("postgresql", "dagsterWebserver", "dagster-user-deployments", "dagsterDaemon", "redis"),
        *("flower", "ingress", "imagePullSecrets", "computeLogManager", "scheduler", "runLauncher"),
        *("pythonLogs", "busybox", "migrate", "telemetry", "serviceAccount", "retention"),
        "additionalInstanceConfig",
    },
    "global": {
        *("postgresqlSecretName", "dagsterHome", "serviceAccountName", "celeryConfigSecretName"),
    },
    "postgresql": {
        *("image", "enabled", "postgresqlHost", "postgresqlUsername", "postgresqlPassword"),
        *("postgresqlDatabase", "postgresqlParams", "postgresqlScheme", "service"),
    },
    "dagsterWebserver.service": {"type", "port", "annotations"},
}
USER_DEPLOYMENT = {
    *("name", "image", "dagsterApiGrpcArgs", "codeServerArgs", "includeConfigInLaunchedRuns"),
    *("deploymentNamespace", "port", "env", "envConfigMaps", "envSecrets", "annotations"),
    *("nodeSelector", "affinity", "tolerations", "podSecurityContext", "securityContext"),
    *("resources", "livenessProbe", "readinessProbe", "startupProbe", "labels", "volumeMounts"),
    *("volumes", "schedulerName", "initContainers", "sidecarContainers", "deploymentStrategy"),
    "serviceAccount",
}


def test_kubernetes_sets_only_what_the_chart_reads() -> None:
    values = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())
    for path, allowed in CHART.items():
        found = values
        for name in filter(None, path.split(".")):
            found = found[name]
        assert set(found) <= allowed, path
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert {"name", "image", "port"} <= set(deployment) <= USER_DEPLOYMENT
    assert str(deployment["port"]) in deployment["readinessProbe"]["exec"]["command"][-1]
    queue = values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    for limit in queue["tagConcurrencyLimits"]:
        assert {"key", "limit"} <= set(limit) <= {"key", "value", "limit"}


def test_kubernetes_keeps_ticks_as_long_as_the_committed_instance() -> None:
    values = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())
    ours = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    for kind in ("schedule", "sensor"):
        kept = values["retention"][kind]["purgeAfterDays"]
        assert kept == ours["retention"][kind]["purge_after_days"]
    assert values["additionalInstanceConfig"] == {"freshness": ours["freshness"]}


def test_kubernetes_has_the_lanes_of_the_committed_instance() -> None:
    values = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())
    queue = values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    runs = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())["concurrency"]["runs"]
    *lanes, assets = runs["tag_concurrency_limits"]
    *same, backfills = queue["tagConcurrencyLimits"]
    assert same == lanes
    # the lane of asset runs is given by a class of ours, which the chart's images do not have
    assert assets["value"] == "assets"
    assert backfills == {"key": BACKFILL_ID_TAG, "limit": assets["limit"]}
    assert queue["maxConcurrentRuns"] == runs["max_concurrent_runs"]
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert deployment["securityContext"]["runAsNonRoot"] is True


@pytest.mark.slow
def test_a_run_pod_needs_nothing_that_the_image_has_not(tmp_path: Path) -> None:
    """The chart's instance names a launcher of dagster-k8s, which only the daemon asks."""
    home = tmp_path / "home"
    home.mkdir()
    kinds = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())["runLauncher"]
    launcher = {"module": "dagster_k8s", "class": kinds["type"]}
    (home / "dagster.yaml").write_text(yaml.safe_dump({"run_launcher": launcher}))
    assert importlib.util.find_spec("dagster_k8s") is None
    code = ModuleCodePointer("hedge_pipeline.definitions", "defs")
    job = code_location().resolve_job_def("close_session")
    origin = JobPythonOrigin(job.name, RepositoryPythonOrigin(sys.executable, code))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = instance.create_run_for_job(job, job_code_origin=origin)
        arguments = ExecuteRunArgs(origin, run.run_id, instance.get_ref()).get_command_args()
        done = subprocess.run(
            [*arguments],
            env=environment(
                DAGSTER_HOME=str(home),
                HEDGE_DATA_URL=str(tmp_path / "data"),
                HEDGE_SYMBOLS="SIMQ",
            ),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (found,) = instance.get_runs()
        assert found.status == dg.DagsterRunStatus.SUCCESS


def test_the_instance_on_postgres_differs_from_the_committed_one_in_its_storage_only() -> None:
    found = yaml.safe_load((DEPLOY / "dagster.postgres.yaml").read_text())
    storage = found.pop("storage")["postgres"]["postgres_db"]
    assert found == yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    assert storage["password"] == {"env": "POSTGRES_PASSWORD"}


# -- who may ask -----------------------------------------------------------------------------------


def command_lines(ports: Ports, folder: Path) -> dict[str, str]:
    found = commands(load_settings(), ports, folder, headless=False)
    return {
        name: what if isinstance(what, str) else " ".join((what.module, *what.arguments))
        for name, what in found.items()
    }


def test_each_ui_knows_the_address_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALIASES:
        monkeypatch.delenv(name, raising=False)
    assert pages(load_settings(), Ports(3001, 5001)) == {
        "HEDGE_DAGSTER_URL": "http://127.0.0.1:3001",
        "HEDGE_MLFLOW_URL": "http://127.0.0.1:5001",
    }
    assert pages(load_settings(bind="::1"), Ports())["HEDGE_MLFLOW_URL"] == "http://[::1]:5000"
    hidden = load_settings(bind="0.0.0.0", behind_proxy=True, mlflow_url="https://there")
    assert pages(hidden, Ports()) == {
        "HEDGE_DAGSTER_URL": "",
        "HEDGE_MLFLOW_URL": "https://there",
    }


def test_the_uis_listen_on_loopback_and_mlflow_checks_host_and_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ALIASES:
        monkeypatch.delenv(name, raising=False)
    found = command_lines(Ports(3000, 5000), tmp_path)
    assert " -h 127.0.0.1 -p 3000" in found["dagster"]
    assert " --host 127.0.0.1 --port 5000" in found["mlflow"]
    assert "ALLOWED_HOSTS='localhost:5000,127.0.0.1:5000,[::1]:5000' " in found["mlflow"]
    assert "CORS_ALLOWED_ORIGINS='http://localhost:5000," in found["mlflow"]
    assert set(commands(load_settings(), Ports(), tmp_path, headless=True)) == {"code", "daemon"}
    monkeypatch.setenv("HEDGE_BIND", "0.0.0.0")
    monkeypatch.setenv("HEDGE_BEHIND_PROXY", "true")
    monkeypatch.setenv("HEDGE_MLFLOW_ALLOWED_HOSTS", "hedge.example:8443")
    found = command_lines(Ports(), tmp_path)
    assert " -h 0.0.0.0 " in found["dagster"]
    assert "ALLOWED_HOSTS=hedge.example:8443 " in found["mlflow"]


def test_an_open_address_without_a_proxy_is_refused_by_the_service(tmp_path: Path) -> None:
    said = hedge("up", cwd=tmp_path, HEDGE_BIND="0.0.0.0")
    assert said.returncode == 1
    assert "an authenticating proxy" in said.stderr
    assert len(said.stderr.splitlines()) == 1


def test_an_address_that_is_not_this_machines_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").touch()
    said = hedge("up", cwd=tmp_path, HEDGE_BIND="192.0.2.7", HEDGE_BEHIND_PROXY="true")
    assert said.returncode == 1
    assert said.stderr == "error: HEDGE_BIND=192.0.2.7 is no address of this machine\n"


# -- PostgreSQL and S3 -----------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_runs_on_postgres_and_s3_by_settings_only(
    tmp_path: Path, postgres: Postgres, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bootstrap, a session in Dagster runs, housekeeping with a backup: state is in the servers."""
    home = postgres.home(tmp_path / "dagster_home")
    variables = {
        **postgres.variables,
        **s3,
        "DAGSTER_HOME": str(home),
        "HEDGE_DATA_URL": "s3://hedge/live",
        "HEDGE_BACKUP_URL": "s3://hedge/nightly",
        "HEDGE_SYMBOLS": "SIMQ",
        "HEDGE_CALENDAR": "24/7",  # as `hedge up` tells its processes
    }
    said, errors = one_after_the_other(
        ("up", "--prepare", "--configuration", str(DEPLOY / "dagster.postgres.yaml")),
        ("bootstrap", "--days", "10"),
        ("job", "close_session"),
        ("job", "housekeeping"),
        ("restore", "--verify", "--json"),
        ("status", "--json"),
        cwd=tmp_path,
        **variables,
    )
    assert [code for code, _ in said] == [0] * len(said), errors[-3000:]
    assert "SIMQ: version 1 on " in said[1][1]
    assert "canary" not in errors + "".join(text for _, text in said)
    assert not list(home.rglob("*.db"))
    checked = json.loads(said[-2][1])
    assert len(checked["left_out"]) == 2  # both databases are the server's own matter
    assert checked["files"] > 20
    assert json.loads(said[-1][1])["symbols"]["SIMQ"]["newest_version"]["version"] == 1
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_runs_count() == 2
        postgres.stop()
        postgres.start()
        # what was open before the restart goes on
        instance.report_runless_asset_event(dg.AssetMaterialization("raw_quotes"))
        later = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
        assert delete_old_runs(instance, home, later) == 2
        assert instance.get_runs_count() == 0


def test_the_command_that_makes_the_home_ready_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEDGE_DATA_URL", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)
    done = CliRunner().invoke(app, ["up", "--prepare"])
    assert done.exit_code == 0, done.output
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        assert instance.get_runs_count() == 0
