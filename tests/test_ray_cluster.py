"""Whose Ray a command uses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from local_ray import local_ray
from ray._common.utils import reset_ray_address
from ray._private.utils import write_ray_address

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.ray_cluster import check_cpus, ensure_ray, uses_gpu
from qdmr_ray.train import ray_trainer as launch
from qdmr_ray.train.failures import Supervision
from qdmr_ray.train.worker_context import Host, threads_for

GROWING = {"CPU": 2.0, "autoscaling": 1.0}
CLUSTER_OF_ANOTHER = """
import ray
from qdmr_ray.ray_cluster import (ensure_ray)
ensure_ray()
print("cluster", ray.get_runtime_context().gcs_address)
"""


@contextmanager
def announced() -> Iterator[None]:
    """As `ray start` does it: a note on this machine that names the cluster started last."""
    write_ray_address(ray.get_runtime_context().gcs_address)
    yield
    reset_ray_address()


@pytest.mark.ray
def test_a_command_joins_no_cluster_that_it_was_not_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with local_ray(), announced():
        command = [sys.executable, "-c", CLUSTER_OF_ANOTHER]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        ours = ray.get_runtime_context().gcs_address
    assert done.returncode == 0, done.stderr
    assert "cluster " in done.stdout
    assert f"cluster {ours}" not in done.stdout


@pytest.mark.parametrize(("slow", "starts"), [(2, True), (3, False)])
def test_a_busy_machine_gets_more_than_one_attempt(
    monkeypatch: pytest.MonkeyPatch, slow: int, starts: bool
) -> None:
    calls: list[str] = []

    def init(address: str, **options: Any) -> None:
        calls.append(address)
        if len(calls) <= slow:
            # As Ray raises it.
            raise Exception("The current node timed out during startup.")

    # A copy, since Ray's variables that are set stay for other tests.
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"})
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    if starts:
        ensure_ray()
    else:
        with pytest.raises(QdmrError, match="a local Ray can't be used: this machine is too busy"):
            ensure_ray()
    assert calls == ["local"] * 3


@pytest.mark.parametrize(
    ("resources", "gpu", "expected"),
    [
        ({"CPU": 8.0, "GPU": 1.0}, None, False),
        ({"CPU": 8.0, "GPU": 2.0}, None, True),
        ({"CPU": 8.0, "GPU": 2.0}, False, False),
        # One node of four is there; the others come when they are needed.
        ({**GROWING, "GPU": 1.0}, True, True),
        ({"controller": 8.0}, True, True),
    ],
)
def test_gpus_are_those_that_the_cluster_has_or_grows_to(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], gpu: bool | None, expected: bool
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    experiment = experiment_from_dict({"scaling": {"workers": 2, "gpu": gpu}})
    assert uses_gpu(experiment) is expected
    check_cpus(experiment)


@pytest.mark.parametrize("resources", [GROWING, {"controller": 8.0}])
def test_a_cluster_that_grows_is_never_taken_for_one_without_gpus(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float]
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    with pytest.raises(SettingsError, match=r"scaling\.gpu is not set.*true or false"):
        uses_gpu(experiment_from_dict({}))


@pytest.mark.parametrize(
    ("machine", "node", "workers", "threads"),
    [(16, 16.0, 4, 4), (64, 4.0, 1, 4), (2, 8.0, 1, 2), (8, 0.0, 2, 4), (2, 2.0, 4, 1)],
)
def test_threads_are_a_share_of_what_the_node_has(
    monkeypatch: pytest.MonkeyPatch, machine: int, node: float, workers: int, threads: int
) -> None:
    class Context:
        def get_node_id(self) -> str:
            return "here"

    nodes: list[dict[str, Any]] = [
        {"NodeID": "there", "Resources": {"CPU": 96.0}},
        {"NodeID": "here", "Resources": {"CPU": node} if node else {}},
    ]
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    host = Host(gpu=False, local_world_size=workers)
    assert threads_for(host) == threads


@pytest.mark.parametrize(
    ("gpu", "share", "backend"), [(True, 1.0, "nccl"), (True, 0.5, "gloo"), (False, 1.0, "gloo")]
)
def test_workers_that_share_a_gpu_do_not_use_nccl(gpu: bool, share: float, backend: str) -> None:
    experiment = experiment_from_dict({"scaling": {"workers": 2, "gpus_per_worker": share}})
    assert launch._backend(experiment.scaling, gpu) == backend


def test_patience_is_for_each_wait_and_not_for_all_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    patience = Supervision(None, 60.0)
    for _ in range(5):
        patience.on_controller_start_worker_group()
        now[0] += 40
        # An attempt that failed, and one that worked.
        patience.before_controller_execute_failure_decision(None)
        patience.on_controller_start_worker_group()
        patience.after_worker_group_start(None)
        now[0] += 1000
        # A failure of workers that were there has nothing to do with waiting.
        patience.before_controller_execute_failure_decision(None)
    patience.on_controller_start_worker_group()
    now[0] += 60
    with pytest.raises(QdmrError, match=r"no room .* for all of scaling\.node_wait=60"):
        patience.before_controller_execute_failure_decision(None)


def test_a_recording_without_a_gpu_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = experiment_from_dict({"compute": {"cuda_graph": True}})
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    with pytest.raises(SettingsError, match=r"compute\.cuda_graph .* on the cpu; set it to false"):
        uses_gpu(experiment)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    assert uses_gpu(experiment)
