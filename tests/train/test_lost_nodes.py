"""Nodes that are lost: training goes on with fewer workers, or says after a while what it lacks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from test_lost_workers import STAGE, Misfortune, logged, long_run
from tiny_training import bare_loop, metrics_of

from qdmr_ray.errors import QdmrError
from qdmr_ray.train.run import train_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# One worker and its loading task fit on a node of three CPUs; two workers do not.
PLACE = {"cpus_per_worker": 2, "max_failures": 3}
ITERATIONS = 90


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head with three CPUs; lost nodes are noticed within seconds."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "6")
    # Nodes are added in a thread, where Python takes no signal handlers.
    monkeypatch.setattr("ray._private.utils.set_sigterm_handler", lambda _: None)
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    store = 100_000_000
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 3,
            "object_store_memory": store,
            "include_dashboard": False,
            "_system_config": quick,
        },
    )
    ray.init(address=cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster: Cluster) -> object:
    node = cluster.add_node(num_cpus=3, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    return node


def workers_by_iteration(run: Path) -> list[int]:
    return [int(line["workers"]) for line in metrics_of(run, STAGE)]


@pytest.mark.long
def test_training_goes_on_with_the_nodes_that_are_left(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
) -> None:
    nodes = [add_node(cluster)]
    run = tmp_path / "run"

    def lose_the_node(stage: Path) -> bool:
        if logged(stage) < 30:
            return False
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        return True

    # Without discriminators, whose float32 noise would grow over so many steps.
    experiment = long_run(
        tiny_dataset,
        "run",
        gan=0,
        workers=2,
        min_workers=1,
        iterations=ITERATIONS,
        **PLACE,
    )
    with Misfortune(run / STAGE, lose_the_node) as misfortune:
        train_run(experiment, storage=str(tmp_path), say=lambda _: None)
    assert misfortune.left == []
    counts = workers_by_iteration(run)
    assert len(counts) == ITERATIONS
    changes = [counts[0], *(b for a, b in itertools.pairwise(counts) if a != b)]
    assert changes == [2, 1]
    # The batch and the order of the samples stay, so the result is that of two workers.
    *expected, _ = bare_loop(experiment, STAGE, run, workers=2)
    for line, losses in zip(metrics_of(run, STAGE), expected, strict=True):
        assert line["source/l1"] == pytest.approx(losses["source/l1"], rel=1e-2)


@pytest.mark.long
def test_crops_are_cut_elsewhere_where_the_workers_fill_their_node(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
) -> None:
    add_node(cluster)
    # Ray Train packs both workers onto one node, which has no CPU left then.
    full = {"cpus_per_worker": 1.5, "max_failures": 0}
    experiment = long_run(tiny_dataset, "run", workers=2, iterations=20, **full)
    train_run(experiment, storage=str(tmp_path), say=lambda _: None)
    assert len(workers_by_iteration(tmp_path / "run")) == 20


@pytest.mark.long
def test_a_node_that_never_comes_back_ends_the_run_with_one_line(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
) -> None:
    node = add_node(cluster)

    def lose_the_node(stage: Path) -> bool:
        if logged(stage) < 30:
            return False
        cluster.remove_node(node, allow_graceful=False)
        return True

    experiment = long_run(
        tiny_dataset, "run", workers=2, node_wait=6, iterations=ITERATIONS, **PLACE
    )
    with (
        Misfortune(tmp_path / "run" / STAGE, lose_the_node) as misfortune,
        pytest.raises(QdmrError, match=r"no room for its workers for all of scaling\.node_wait"),
    ):
        train_run(experiment, storage=str(tmp_path), say=lambda _: None)
    assert misfortune.left == []
