"""The CPUs that Ray gives to the loading of a training, computed by Ray's own coordinator."""

from typing import Any

import pytest
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    ResourceRequestPriority,
)
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    _AutoscalingCoordinatorActor,
)

WORKERS_OF_A_NODE = 8


def cpus_for(executions: int, nodes: int, cpus: int) -> list[float]:
    """CPUs that each execution gets beside eight workers of one CPU on every node."""
    cluster = [
        {"NodeID": f"{number:04}", "Alive": True, "Resources": {"CPU": cpus, "GPU": 8}}
        for number in range(nodes)
    ]
    coordinator = _AutoscalingCoordinatorActor(
        get_current_time=lambda: 0.0,
        send_resources_request=lambda *_: None,
        get_cluster_nodes=lambda: cluster,
    )

    def ask(name: str, bundles: list[dict[str, float]], **options: Any) -> None:
        coordinator.request_resources(
            name, bundles, 60.0, priority=ResourceRequestPriority.HIGH, **options
        )

    ask("train", [{"CPU": 1, "GPU": 1}] * WORKERS_OF_A_NODE * nodes)
    for number in range(executions):
        ask(f"data {number}", [], request_remaining=["CPU"])
    return [
        sum(node["CPU"] for node in coordinator.get_reserved_resources(f"data {i}").values())
        for i in range(executions)
    ]


@pytest.mark.parametrize(("nodes", "cpus"), [(1, 16), (8, 96), (128, 192)])
def test_one_execution_gets_every_cpu_that_the_workers_leave(nodes: int, cpus: int) -> None:
    assert cpus_for(1, nodes, cpus) == [nodes * (cpus - WORKERS_OF_A_NODE)]


def test_an_execution_for_each_worker_would_get_one_cpu_or_none() -> None:
    """Why there is one: with two plans alive, as at a seam, nothing was left for either."""
    assert cpus_for(8, 1, 16) == [1] * 8
    assert cpus_for(16, 1, 16) == [0] * 16
