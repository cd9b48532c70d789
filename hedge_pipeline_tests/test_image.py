"""What the Dockerfile does, in empty folders: its environment from its own lock, then the service.

There is no container: RUN, COPY, ENV, USER, CMD and HEALTHCHECK are read from the file and carried
out with folders of this test in place of `/venv`, `/app`, `/data` and `/tmp`. What runs in the
container sees a file system of which only the last two can be written, as a user without rights.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

from hedge_pipeline.store import bytes_below
from hedge_pipeline_tests.replays import environment

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).resolve().parent.parent
MOST_MEGABYTES = 1_050
PATIENCE = 240.0
# disks of other tests are let go, so that they can be unmounted there; the second `unshare` makes
# another user of this one, who loses all capabilities by that
READ_ONLY = """
mount --make-rprivate /
for disk in $(awk '$1 ~ "^/dev/loop" {print $2}' /proc/mounts); do umount -l "$disk"; done
for kept in "$1" "$2"; do mount --bind "$kept" "$kept"; done
mount -o remount,ro,bind /
user=$3; shift 3
exec unshare --user --map-user="$user" --map-group="$user" "$@"
"""


@dataclass(frozen=True)
class Image:
    """The folders of a container that was never made."""

    folder: Path

    @cached_property
    def stages(self) -> list[list[tuple[str, str]]]:
        """Instruction and what stands behind it, by stage."""
        text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
        lines = [line.split(maxsplit=1) for line in text.splitlines() if line[:1].isupper()]
        found: list[list[tuple[str, str]]] = []
        for word, rest in lines:
            if word == "FROM":
                found.append([])
            found[-1].append((word, rest))
        return found

    def here(self, text: str) -> str:
        """The text with this test's folders."""
        known = r"(?<![\w./-])/(venv|build|app|data|tmp)\b"
        return re.sub(known, lambda found: str(self.folder / found[1]), text)

    def variables(self, stage: int) -> dict[str, str]:
        """Those the stage sets, over what a bare machine has."""
        found = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        # where packages come from, and what leads there
        kept = ("PIP_", "SSL_", "REQUESTS_", "HTTP", "http", "NO_PROXY", "no_proxy")
        found |= {k: v for k, v in environment().items() if k.startswith(kept)}
        for word, rest in self.stages[stage]:
            if word == "ENV":
                told = (entry.split("=", 1) for entry in shlex.split(rest))
                found |= {k: self.here(v).replace("$PATH", found["PATH"]) for k, v in told}
        return {**found, "HOME": str(self.folder)}

    def build(self) -> None:
        """Carries out the first stage."""
        work = self.folder
        for word, rest in self.stages[0][1:]:
            if word == "WORKDIR":
                work = Path(self.here(rest))
                work.mkdir()
            elif word == "COPY":
                self.copy(rest, work)
            elif word == "RUN":
                given = self.here(re.sub(r"^python\b", shlex.quote(sys.executable), rest))
                subprocess.run(
                    ["sh", "-c", given], cwd=work, env=self.variables(0), check=True, timeout=900
                )

    def copy(self, rest: str, work: Path) -> None:
        """As COPY does from the repository."""
        *sources, target = rest.split()
        for source in sources:
            path, goal = REPOSITORY / source, work / target
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, goal, dirs_exist_ok=True, ignore=ignored)
            else:
                goal.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, goal)

    def inside(self, words: Sequence[str]) -> list[str]:
        """A command as it is run in the container."""
        (user,) = [rest for word, rest in self.stages[-1] if word == "USER"]
        kept = [str(self.folder / name) for name in ("data", "tmp")]
        found = shutil.which(words[0], path=self.variables(1)["PATH"]) or words[0]
        read_only = ["unshare", "--mount", "sh", "-e", "-c", READ_ONLY, "sh"]
        return [*read_only, *kept, user.partition(":")[0], found, *words[1:]]

    def runs(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in the container."""
        return subprocess.run(
            self.inside(words),
            cwd=self.folder / "app",
            env=self.lived_in,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    @property
    def lived_in(self) -> dict[str, str]:
        """Environment of the container; the simulated market is what it is given."""
        given = {"HEDGE_SOURCE": "simulated", "HEDGE_SYMBOLS": "SIMQ", "POLLING_INTERVAL": "10"}
        own = str(self.folder / "tmp")
        return {**self.variables(1), **given, "HOME": own, "TMPDIR": own}

    def told(self, word: str) -> list[str]:
        """The words of CMD or HEALTHCHECK of the last stage."""
        (rest,) = [rest for name, rest in self.stages[-1] if name == word]
        found: list[str] = json.loads(rest[rest.index("[") :])
        return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a read-only file system needs the right to mount")
    return image_in(tmp_path_factory.getbasetemp())


@cache
def image_in(folder: Path) -> Image:
    """The image, built once per test run."""
    made = Image(folder / "image")
    made.folder.mkdir()
    made.build()
    for name in ("app", "data", "tmp"):
        (made.folder / name).mkdir()
    for word, rest in made.stages[1]:
        if word == "COPY" and not rest.startswith("--from="):
            made.copy(rest, made.folder / "app")
    return made


@pytest.fixture(scope="module")
def container(image: Image) -> Iterator[subprocess.Popen[bytes]]:
    """CMD of the image, with a first model."""
    first = image.runs("hedge", "bootstrap", "--days", "6")
    assert "SIMQ: version 1 on " in first.stdout, first.stderr
    with (image.folder / "container.log").open("wb") as log:
        process = subprocess.Popen(
            image.inside(image.told("CMD")),
            cwd=image.folder / "app",
            env=image.lived_in,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_environment_is_of_the_images_own_lock(image: Image) -> None:
    asked = (
        "import hedge_pipeline, json, xgboost\n"
        "print(json.dumps([hedge_pipeline.__file__, xgboost.build_info()['USE_CUDA']]))"
    )
    said = image.runs("python", "-c", asked)
    place, cuda = json.loads(said.stdout)
    assert Path(place).is_relative_to(image.folder / "venv")  # not the working copy
    assert not cuda
    lock = (REPOSITORY / "deploy" / "requirements.lock").read_text()
    wanted = set(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))
    listed = json.loads(image.runs("pip", "list", "--format", "json").stdout)
    have = {re.sub(r"[-_.]+", "-", package["name"]).lower() for package in listed}
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in wanted} <= have
    assert "pytest" not in have
    assert bytes_below(image.folder / "venv") < MOST_MEGABYTES * 1e6


def test_it_is_nobody_and_can_write_its_data_and_temporary_files_only(image: Image) -> None:
    asked = """
import os
from pathlib import Path
print(os.getuid(), [line.split()[1] for line in open("/proc/self/status") if "CapEff" in line])
for folder in ("data", "tmp", "app", "venv", "/", "/etc", "/var/tmp"):
    try:
        Path("..", folder, "probe").touch()
        Path("..", folder, "probe").unlink()
        print(folder)
    except OSError as error:
        assert error.strerror in ("Read-only file system", "Permission denied"), error
"""
    said = image.runs("python", "-c", asked)
    assert said.stdout.split("\n") == ["10001 ['0000000000000000']", "data", "tmp", ""], said


def test_the_container_polls_and_is_healthy(
    image: Image, container: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + PATIENCE
    while not list((image.folder / "data" / "prediction_log").rglob("part-*.parquet")) or (
        image.runs(*image.told("HEALTHCHECK")).returncode
    ):
        assert container.poll() is None
        assert time.monotonic() < deadline, (image.folder / "container.log").read_text()[-2000:]
        time.sleep(2.0)


def test_it_writes_to_its_data_folder_only_and_ends_when_it_is_told_to(
    image: Image, container: subprocess.Popen[bytes]
) -> None:
    app = image.folder / "app"
    found = {str(path.relative_to(app)) for path in app.rglob("*") if path.is_file()}
    last = [rest for word, rest in image.stages[1] if word == "COPY" and "--from" not in rest]
    assert found == {name for rest in last for name in rest.split()[:-1]}
    begun = time.monotonic()
    container.send_signal(signal.SIGTERM)
    assert container.wait(30) == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 20.0
    assert image.runs("hedge", "status").returncode == 0
