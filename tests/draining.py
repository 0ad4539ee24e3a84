"""Telling a node that it is about to be taken away, as a cloud or ``ray drain-node`` does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

# Longer than a worker or a trial takes to hear of the notice: its node tells it within a second.
HEARD_SECONDS = 2.0


def two_nodes_of_one_cpu() -> Cluster:
    """A head without CPUs and two nodes, each with room for one worker or trial."""
    small = {"object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    return cluster


def drain(cluster_address: str, node: str, process: int) -> None:
    """Drains ``node`` (an id) while ``process``, which trains there, stands still. Otherwise it
    would have to train on for thousands of iterations until it can hear of the notice."""
    os.kill(process, signal.SIGSTOP)
    try:
        subprocess.run(
            [
                *(str(Path(sys.executable).with_name("ray")), "drain-node"),
                *("--address", cluster_address, "--node-id", node),
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"),
                *("--deadline-remaining-seconds", "120"),
            ],
            check=True,
            capture_output=True,
        )
        time.sleep(HEARD_SECONDS)
    finally:
        os.kill(process, signal.SIGCONT)
