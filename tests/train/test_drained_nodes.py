"""A node that is about to be taken away: training saves itself and goes on elsewhere, same bits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from draining import drain, two_nodes_of_one_cpu
from ray.cluster_utils import Cluster
from test_lost_workers import STAGE, Misfortune, checkpoints, logged, long_run, same_weights
from tiny_training import bare_loop, metrics_of

from qdmr_ray.train.run import train_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
# Far longer than it takes until the worker looks for a notice (ASK_RAY of qdmr_ray.patience, a
# quarter of a second here).
ITERATIONS = 300


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs and two nodes, each with room for the worker."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    monkeypatch.setenv("QDMR_PATIENCE_ASK_RAY", "0.25")
    # An embedded Ray of an earlier test switches it off.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    # Nodes are added in a thread, where Python takes no signal handlers.
    monkeypatch.setattr("ray._private.utils.set_sigterm_handler", lambda _: None)
    cluster = two_nodes_of_one_cpu()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    # Joining would switch it on for the tests that follow in this process.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def workers_node() -> tuple[str, int] | None:
    """The training worker's node and process."""
    actors = ray._private.state.actors().values() if ray.is_initialized() else ()
    places = [
        (actor["Address"]["NodeID"], actor["Pid"])
        for actor in actors
        if actor["ActorClassName"] == "RayTrainWorker" and actor["State"] == "ALIVE"
    ]
    return places[0] if places else None


@pytest.mark.long
def test_training_leaves_a_node_that_is_drained(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
) -> None:
    left: list[str] = []
    seen: list[str] = []

    def notify(stage: Path) -> bool:
        if logged(stage) < 30 or (place := workers_node()) is None:
            return False
        left.append(place[0])
        drain(cluster.address, *place)
        return True

    def look(stage: Path) -> bool:
        time.sleep(0.2)
        place = workers_node()
        if place is None or place[0] == left[0]:
            return False
        # What it goes on from: nothing else was saved on the way.
        seen.extend([place[0], *map(str, checkpoints(stage))])
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
    with Misfortune(tmp_path / "run" / STAGE, notify, look) as misfortune:
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
