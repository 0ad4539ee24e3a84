"""A node that is about to be taken away: training saves itself and goes on elsewhere, same bits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from test_lost_workers import STAGE, Misfortune, checkpoints, logged, long_run, same_weights
from tiny_training import bare_loop, metrics_of

from qdmr_ray.train.run import train_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
# Far longer than it takes until the worker hears of it.
ITERATIONS = 1500


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs and two nodes, each with room for the worker."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    # An embedded Ray of an earlier test switches it off.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    # Nodes are added in a thread, where Python takes no signal handlers.
    monkeypatch.setattr("ray._private.utils.set_sigterm_handler", lambda _: None)
    store = 100_000_000
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": store}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=store)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    # Joining would switch it on for the tests that follow in this process.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def workers_node() -> str | None:
    actors = ray._private.state.actors().values() if ray.is_initialized() else ()
    nodes = [
        actor["Address"]["NodeID"]
        for actor in actors
        if actor["ActorClassName"] == "RayTrainWorker" and actor["State"] == "ALIVE"
    ]
    return nodes[0] if nodes else None


def test_training_leaves_a_node_that_is_drained(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
) -> None:
    left: list[str] = []
    seen: list[str] = []

    def drain(stage: Path) -> bool:
        node = workers_node()
        if logged(stage) < 30 or node is None:
            return False
        left.append(node)
        subprocess.run(
            [
                *(str(Path(sys.executable).with_name("ray")), "drain-node"),
                *("--address", cluster.address, "--node-id", node),
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"),
                *("--deadline-remaining-seconds", "120"),
            ],
            check=True,
            capture_output=True,
        )
        return True

    def look(stage: Path) -> bool:
        node = workers_node()
        if node is None or node == left[0]:
            return False
        # What it goes on from: nothing else was saved on the way.
        seen.extend([node, *map(str, checkpoints(stage))])
        return True

    experiment = long_run(
        tiny_dataset,
        "run",
        workers=1,
        iterations=ITERATIONS,
        gan=0,
        cpus_per_worker=0.5,
        # A notice is no failure.
        max_failures=0,
        checkpoint_interval=10 * ITERATIONS,
    )
    with Misfortune(tmp_path / "run" / STAGE, drain, look) as misfortune:
        train_run(experiment, storage=str(tmp_path), say=lambda _: None)
    assert misfortune.left == []
    _, saved = seen
    assert 30 < int(saved) < ITERATIONS
    lines = metrics_of(tmp_path / "run", STAGE)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    *losses, expected = bare_loop(experiment, STAGE, tmp_path / "run", workers=1)
    # The iteration at which it would have gone astray.
    assert [line["source/l1"] for line in lines] == [line["source/l1"] for line in losses]
    assert same_weights(tmp_path / "run", expected)
