"""A sweep on a cluster that grows for it and shrinks again: Ray's autoscaler for real, with nodes
that are processes of this machine.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from qdmr_ray.storage.claims import process_here

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
Variables = dict[str, str]
COUNT = """
import ray, time
ray.init(log_to_driver=False)
while True:
    print("nodes", sum(node["Alive"] for node in ray.nodes()), flush=True)
    time.sleep(0.5)
"""


def free_port() -> int:
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def autoscaler(port: int) -> dict[str, object]:
    """Settings for up to two nodes of one CPU, ended after twelve seconds without work."""
    lists = (
        *("initialization_commands", "setup_commands", "head_setup_commands", "rsync_filter"),
        *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
        *("cluster_synced_files", "rsync_exclude"),
    )
    empty: dict[str, object] = {name: {} for name in ("auth", "docker", "file_mounts")}
    empty |= {name: [] for name in lists}
    return {
        **empty,
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 0.2,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            # The name under which Ray's fake provider knows the node that is there already; by any
            # other one the autoscaler would want one more head, for ever.
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "spot": {
                "resources": {"CPU": 1, "object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "file_mounts_sync_continuously": False,
    }


def with_descendants(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


@pytest.fixture
def cluster() -> Iterator[Variables]:
    """A head without CPUs, with Ray's autoscaler; yields the variables that clients need."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    port = free_port()
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "QDMR_"))}
    # pytest's own folders are too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "token").write_text("a" * 64)
        (Path(folder) / "autoscaler.json").write_text(json.dumps(autoscaler(port)))
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{folder}/token"}
        head = subprocess.Popen(
            [
                *(Path(sys.executable).with_name("ray"), "start", "--block", "--head"),
                *(f"--port={port}", "--num-cpus=0", "--include-dashboard=false"),
                f"--autoscaling-config={folder}/autoscaler.json",
                *(f"--temp-dir={folder}/r", "--object-store-memory=100000000"),
                f"--ray-client-server-port={free_port()}",
            ],
            env={
                **clean,
                **access,
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_worker_niceness": "0",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        family: set[int] = set()
        watching = threading.Event()

        def watch() -> None:
            # The autoscaler's nodes lose their parents when it ends.
            while not watching.wait(1):
                family.update(with_descendants(head.pid))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        yield {**clean, **access, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        watching.set()
        watcher.join()
        family.update(with_descendants(head.pid))
        for pid in family:
            if process_here(pid) is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        head.wait(30)


class NodeCount:
    """A process that counts the cluster's nodes twice a second."""

    def __init__(self, cluster: Variables) -> None:
        self.seen: list[int] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", COUNT],
            env=cluster,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("nodes "):
                self.seen.append(int(line.split()[1]))

    def wait_for(self, count: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.seen or self.seen[-1] != count:
            assert time.monotonic() < end, f"{self.seen[-1:]} nodes, not {count}"
            time.sleep(0.2)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()


@pytest.mark.long
def test_a_sweep_grows_the_cluster_and_leaves_it_empty(
    cluster: Variables, tiny_dataset: Path, tmp_path: Path
) -> None:
    stage = {"iterations": 40, "batch_size": 2, "crop": 16, "lpips": 0}
    plain = {
        "run": ["source_only"],
        "data": {"path": str(tiny_dataset), "loader_workers": 1},
        "network": {
            "widths": [8, 16],
            "residual_blocks": 1,
            "swin": {"groups": 1, "blocks": 2, "heads": 2, "window": 4},
        },
        "discriminator": {"width": 4},
        "stages": {"source_only": stage},
        "scaling": {"cpus_per_worker": 0.75, "threads": 1, "gpu": False},
        "logging": {"log_interval": 10, "validation_interval": 20},
        "evaluation": {"validation_share": 0.5, "sheets": False},
    }
    sweep = {
        "experiment": "plain.yaml",
        "metric": "source_only/validation/psnr",
        "trials": 2,
        "concurrent": 2,
        "space": {"stages.source_only.gan": {"float": [0.001, 0.1], "log": True}},
    }
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(plain))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    count = NodeCount(cluster)
    try:
        count.wait_for(1, 120)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "qdmr_ray.cli", "sweep", str(tmp_path / "sweep.yaml")),
                *("--storage", str(tmp_path / "sweeps")),
            ],
            env=cluster,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        # The head, and as many nodes as there were trials at the same time.
        assert max(count.seen) == 3
        count.wait_for(1, 120)
    finally:
        count.end()
    results = json.loads((tmp_path / "sweeps" / "sweep" / "sweep.json").read_text())
    assert [trial["state"] for trial in results["trials"]] == ["finished"] * 2
