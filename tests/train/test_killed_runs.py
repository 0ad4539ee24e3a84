"""Runs that are killed or interrupted: the same command goes on, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
import yaml
from local_ray import local_ray
from safetensors.torch import load_file
from tiny_training import bare_loop, metrics_of, settings

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.storage import open_location
from qdmr_ray.train.checkpoints import CheckpointStore
from qdmr_ray.train.run import train_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


def wait_for(folder: Path, pattern: str, driver: subprocess.Popen[bytes], count: int) -> None:
    while len(list(folder.glob(pattern))) < count:
        assert driver.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)


def wait_until_quiet(file: Path) -> None:
    """Workers outlive their driver by a second or two."""
    before = -1
    while before != file.stat().st_size:
        before = file.stat().st_size
        time.sleep(2)


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """SIGKILL for the driver, and its newest checkpoint cut short; the same command then goes back
    to the one before, says so, and finishes."""
    values = settings(tiny_dataset, run=["source_only"])
    values["stages"]["source_only"]["iterations"] = 200
    values["scaling"]["workers"] = 1
    values["logging"] |= {"log_interval": 10, "checkpoint_interval": 10, "picture_interval": 200}
    config = tmp_path / "experiment.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "qdmr_ray.cli", "train", str(config)]
    command += ["--storage", str(tmp_path / "runs")]
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "QDMR_VERBOSE")}
    run = tmp_path / "runs" / "run"

    driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(run / "source_only" / "checkpoints", "checkpoint_*/complete.json", driver, 2)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not (run / "source_only" / "final").exists()
    wait_until_quiet(run / "source_only" / "metrics.jsonl")
    *_, newest = sorted((run / "source_only" / "checkpoints").glob("checkpoint_*/complete.json"))
    state = newest.with_name("state.pt")
    left = state.stat().st_size // 2
    state.write_bytes(state.read_bytes()[:left])

    done = subprocess.run(command, env=environment, check=True, stderr=subprocess.PIPE, text=True)
    assert done.stderr.count(f"{state}: has {left} bytes, not ") == 1
    experiment = experiment_from_dict(values)
    *_, expected = bare_loop(experiment, "source_only", run, workers=1)
    found = load_file(run / "source_only" / "final" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    iterations = [line["iteration"] for line in metrics_of(run, "source_only")]
    assert iterations == list(range(10, 201, 10))


def test_an_interrupted_training_says_how_to_go_on_and_leaves_nothing_running(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """Ctrl-C, which a terminal sends to all processes of the command. No step is done again."""
    values = settings(tiny_dataset, run=["source_only"])
    values["stages"]["source_only"]["iterations"] = 10_000
    values["scaling"]["workers"] = 1
    values["logging"]["checkpoint_interval"] = 10_000
    config = tmp_path / "experiment.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "qdmr_ray.cli", "train", str(config)]
    command += ["--storage", str(tmp_path / "runs")]
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "QDMR_VERBOSE")}
    stage = tmp_path / "runs" / "run" / "source_only"

    driver = subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE
    )
    try:
        wait_for(stage, "metrics.jsonl", driver, 1)
        while not (stage / "metrics.jsonl").stat().st_size:
            time.sleep(0.1)
        os.killpg(driver.pid, signal.SIGINT)
        said = driver.communicate(timeout=400)[1].decode()
    finally:
        driver.kill()
    assert driver.returncode == 130, said
    assert "qdmr: saving a checkpoint; Ctrl-C again ends without" in said
    assert said.rstrip().endswith("qdmr: interrupted; run the same command again to go on")
    newest = CheckpointStore(open_location(str(stage)).join("checkpoints"), keep=1).newest()
    assert newest is not None
    assert newest.state.iteration >= metrics_of(stage.parent, "source_only")[-1]["iteration"] > 0
    lines = (stage / "metrics.jsonl").read_bytes()
    time.sleep(2)
    assert (stage / "metrics.jsonl").read_bytes() == lines


def test_an_interruption_frees_a_cluster_that_goes_on(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    """And a training leaves Ctrl-C as it was."""
    before = signal.getsignal(signal.SIGINT)
    values = settings(tiny_dataset, run=["source_only"])
    values["stages"]["source_only"]["iterations"] = 10_000
    metrics = tmp_path / "run" / "source_only" / "metrics.jsonl"

    def interrupt() -> None:
        while not metrics.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        train_run(experiment_from_dict(values), storage=str(tmp_path), say=lambda _: None)
    assert signal.getsignal(signal.SIGINT) is before
    end = time.monotonic() + 120
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < end, "workers or their placement group are still there"
        time.sleep(0.2)
