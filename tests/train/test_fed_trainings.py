"""Real trainings out of a feed: one Ray Data execution, whatever the number of workers."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_executions import executions, wait_until
from local_ray import local_ray
from safetensors.torch import load_file
from tiny_training import bare_loop, settings

from qdmr_ray.config import Experiment, experiment_from_dict
from qdmr_ray.train.ray_trainer import InThisProcess
from qdmr_ray.train.run import train_run
from qdmr_ray.train.worker_context import Host

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
STAGE, ITERATIONS = "source_only", 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


class Counting(threading.Thread):
    """Counts the executions that are alive, over and over."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.counts: set[int] = set()
        self.ended = threading.Event()

    def __enter__(self) -> set[int]:
        wait_until(lambda: not executions())
        self.start()
        return self.counts

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        while not self.ended.is_set():
            self.counts.add(len(executions()))
            self.ended.wait(0.05)


def experiment(data: Path, workers: int) -> Experiment:
    values: dict[str, Any] = settings(data, run=[STAGE])
    values["stages"][STAGE] |= {"iterations": ITERATIONS, "batch_size": 8 // workers}
    values["data"] |= {"batches_per_block": 1, "loader_cpus": 0.1}
    values["scaling"] |= {"workers": workers, "cpus_per_worker": 1 / workers}
    values["logging"] = dict.fromkeys(("log_interval", "checkpoint_interval"), 50)
    return experiment_from_dict(values)


@pytest.mark.parametrize("workers", [1, 2, pytest.param(8, marks=pytest.mark.long)])
def test_one_execution_feeds_all_workers(
    cluster: None, tiny_dataset: Path, tmp_path: Path, workers: int
) -> None:
    with Counting() as counts:
        train_run(experiment(tiny_dataset, workers), storage=str(tmp_path), say=str)
    assert max(counts) == 1
    wait_until(lambda: not executions())


def test_a_process_that_trains_alone_on_a_cpu_cuts_its_own_crops(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    wanted = experiment(tiny_dataset, 1)
    with Counting() as counts:
        train_run(wanted, storage=str(tmp_path), say=str, launch=InThisProcess(sharing=1))
    assert counts == {0}


def test_a_process_that_trains_alone_may_have_a_feed(
    cluster: None, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU or out of a store. Its result has the bits of a plain loop, whoever has cut the
    samples."""
    monkeypatch.setattr(Host, "is_fed", lambda *_: True)
    wanted = experiment(tiny_dataset, 1)
    with Counting() as counts:
        train_run(wanted, storage=str(tmp_path), say=str, launch=InThisProcess(sharing=1))
    assert max(counts) == 1
    wait_until(lambda: not executions())
    expected = bare_loop(wanted, STAGE, tmp_path / "run", workers=1)[-1]
    found = load_file(tmp_path / "run" / STAGE / "final/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
