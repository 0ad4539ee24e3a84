"""Jobs on a real cluster of three nodes that asks for a token, as a user sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qdmr_ray.storage.claims import process_here

PROJECT = Path(__file__).parents[2]
NODES = PROJECT / "cluster" / "local" / "nodes.py"
ITERATIONS = 300

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
Variables = dict[str, str]


def clean() -> Variables:
    return {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "QDMR_"))}


def nodes(command: str, folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, NODES, command, "--folder", folder, *options],
        capture_output=True,
        text=True,
        env=clean(),
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # pytest's own folders are too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as parent:
        yield Path(parent) / "c"


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Variables]:
    """A head and two nodes of one CPU; gives what clients need."""
    quick = {
        # A lost node is noticed after seconds, not after half a minute.
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "3",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in quick.items():
            patch.setenv(name, value)
        started = subprocess.run(
            [sys.executable, NODES, "up", "--folder", folder, "--workers", "2", "--cpus", "1"],
            capture_output=True,
            text=True,
            env=clean() | quick,
            timeout=150,
            check=False,
        )
    assert started.returncode == 0, started.stderr
    lines = [line.removeprefix("export ") for line in started.stdout.splitlines()]
    yield dict(line.split("=", 1) for line in lines)
    nodes("down", folder)


def qdmr(
    variables: Variables, *words: str | Path, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qdmr_ray.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=clean() | variables,
        timeout=timeout,
        cwd=PROJECT,
        check=False,
    )


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A user's folder: an experiment for two workers, and something that must not travel."""
    folder = tmp_path_factory.mktemp("code")
    stage = {"iterations": ITERATIONS, "batch_size": 2, "crop": 16, "lpips": 0, "gan": 0}
    plain = {
        "run": ["source_only"],
        "data": {"path": str(tiny_dataset), "loader_workers": 1},
        "network": {
            "widths": [8, 16],
            "residual_blocks": 1,
            "codebook_size": 16,
            "code_dim": 8,
            "swin": {"groups": 1, "blocks": 2, "heads": 2, "window": 4},
        },
        "stages": {"source_only": stage},
        "scaling": {"workers": 2, "min_workers": 1, "cpus_per_worker": 0.75, "threads": 1},
        "logging": {"log_interval": 1, "picture_interval": ITERATIONS, "checkpoint_interval": 20},
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(plain))
    (folder / "data").mkdir()
    (folder / "data" / "photo.png").write_bytes(b"0" * 1000)
    return folder


def lines_of(stage: Path) -> list[dict[str, float]]:
    file = stage / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_without_the_token_nothing_is_submitted(cluster: Variables, code: Path) -> None:
    address = {"RAY_API_SERVER_ADDRESS": cluster["RAY_API_SERVER_ADDRESS"]}
    for variables in (address, {**cluster, "RAY_AUTH_TOKEN": "0" * 64}):
        refused = qdmr(variables | {"HOME": str(code)}, "submit", "--code", code, "--", "echo", "x")
        assert refused.returncode == 1, refused.stdout
        assert "refuses without its token" in refused.stderr
        assert "job " not in refused.stdout
    assert "echo" not in qdmr(cluster, "jobs", "list").stdout


def test_a_training_over_two_nodes_survives_the_loss_of_one_and_comes_home(
    cluster: Variables, folder: Path, code: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "shared"
    submitted = qdmr(
        cluster, "submit", "--code", code, "--name", "two-nodes",
        "--", "qdmr", "train", "two.yaml", "--storage", storage,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    assert "1 files" in submitted.stdout
    assert "job two-nodes" in submitted.stdout
    follower = subprocess.Popen(
        [sys.executable, "-m", "qdmr_ray.cli", "jobs", "logs", "two-nodes", "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean() | cluster,
    )
    stage = storage / "two" / "source_only"
    end = time.monotonic() + 180
    while len(lines_of(stage)) < 60:
        assert time.monotonic() < end, qdmr(cluster, "jobs", "logs", "two-nodes").stdout
        assert follower.poll() is None, follower.communicate()[0]
        time.sleep(0.2)
    state = json.loads((folder / "state.json").read_text())
    for pid in node_processes(state["processes"]["worker2"][0]):
        os.kill(pid, 9)

    said = follower.communicate(timeout=300)[0]
    assert follower.returncode == 0, said
    assert "job two-nodes: SUCCEEDED" in said
    assert f"source_only {ITERATIONS}/{ITERATIONS}" in said
    fetched = qdmr(cluster, "jobs", "fetch", "two-nodes", "--out", tmp_path / "home")
    assert fetched.returncode == 0, fetched.stderr
    home = lines_of(tmp_path / "home" / "source_only")
    assert [line["iteration"] for line in home] == list(range(1, ITERATIONS + 1))
    workers = [line["workers"] for line in home]
    assert (workers[0], workers[-1]) == (2, 1)
    # The batch stays that of two workers: the loss goes down as it would have.
    assert home[-1]["source/l1"] < home[0]["source/l1"]
    model = tmp_path / "home" / "source_only" / "final" / "model.safetensors"
    assert model.read_bytes() == (stage / "final" / "model.safetensors").read_bytes()
    listed = qdmr(cluster, "jobs", "list").stdout
    assert "two-nodes" in listed
    assert "SUCCEEDED" in listed


def node_processes(pid: int) -> list[int]:
    """A node's processes: the one that was started, and all below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and process_here(int(entry.name)):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def test_arguments_arrive_as_they_were_given(
    cluster: Variables, code: Path, tmp_path: Path
) -> None:
    words = ["a b", "$HOME", "; touch /tmp/never", "'\"", "*"]
    script = "import json, sys; print('got', json.dumps(sys.argv[1:]))"
    # The words of `ray job submit`.
    options = ("--working-dir", code, "--submission-id", "words")
    command = ("python", "-c", script, *words)
    done = qdmr(cluster, "submit", "--follow", *options, "--", *command)
    assert done.returncode == 0, done.stderr
    assert "got " in qdmr(cluster, "jobs", "logs", "words", "-f").stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("got ")]
    assert json.loads(line.removeprefix("got ")) == words


def test_a_job_that_fails_fails_the_follower_and_its_folder_can_be_fetched(
    cluster: Variables, code: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "shared"
    (storage / "two").mkdir(parents=True)
    (storage / "two" / "notes.json").write_text("[]")
    done = qdmr(
        cluster, "submit", "--follow", "--code", code, "--name", "fails",
        "--", "qdmr", "train", "two.yaml", "--storage", storage, "--set", "data.path=/nowhere",
    )  # fmt: skip
    assert done.returncode == 1
    assert "/nowhere: no packed dataset" in done.stdout
    assert "ended as FAILED" in done.stderr
    fetched = qdmr(cluster, "jobs", "fetch", "fails", "--out", tmp_path / "home")
    assert fetched.returncode == 0, fetched.stderr
    assert (tmp_path / "home" / "notes.json").exists()


def test_a_secret_that_the_cluster_lacks_is_named(cluster: Variables, code: Path) -> None:
    done = qdmr(
        cluster, "submit", "--follow", "--code", code, "--secret", "LENS_STORE_PASSWORD",
        "--", "qdmr", "stages", "list", "somewhere",
    )  # fmt: skip
    assert done.returncode == 1
    assert "the environment variable LENS_STORE_PASSWORD (--secret) is not set" in done.stdout


def test_a_job_is_stopped_and_unknown_ones_are_named(cluster: Variables, code: Path) -> None:
    sleeper = ["python", "-c", "import time; print('asleep', flush=True); time.sleep(300)"]
    assert (
        qdmr(cluster, "submit", "--name", "sleeper", "--code", code, "--", *sleeper).returncode == 0
    )
    again = qdmr(cluster, "submit", "--name", "sleeper", "--code", code, "--", *sleeper)
    assert again.returncode == 1
    assert "there is a job of this name already" in again.stderr
    runs = qdmr(cluster, "jobs", "delete", "sleeper")
    assert runs.returncode == 1
    assert "end it with qdmr jobs stop sleeper first" in runs.stderr
    stopped = qdmr(cluster, "jobs", "stop", "sleeper")
    assert "job sleeper: STOPPED" in stopped.stdout
    shown = qdmr(cluster, "jobs", "status", "sleeper").stdout.splitlines()
    assert shown[0].split() == ["state", "STOPPED"]
    assert any(line.startswith("command  python -c") for line in shown)
    assert "deleted" in qdmr(cluster, "jobs", "delete", "sleeper").stdout
    gone = ("status", "sleeper")
    for words in (("logs", "nobody"), ("stop", "nobody"), ("fetch", "nobody"), gone):
        unknown = qdmr(cluster, "jobs", *words)
        assert unknown.returncode == 1
        assert f"has no job {words[1]}; qdmr jobs list shows all" in unknown.stderr


def test_no_cluster_is_one_line(code: Path) -> None:
    done = qdmr({}, "submit", "--address", "http://127.0.0.1:9", "--code", code, "--", "echo")
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "http://127.0.0.1:9: no Ray cluster answers there" in done.stderr
