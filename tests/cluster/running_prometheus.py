"""A Prometheus that scrapes a running Ray on which a training's metrics are shown."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
SHOWING = """
import json, math, sys, time
import ray
from qdmr_ray.train.logging.prometheus import (Gauges, PreemptionCounter, TrialGauge)

ray.init(logging_level="ERROR")
logged = json.loads(sys.argv[1])

@ray.remote(num_cpus=0.1)
class Worker:
    def __init__(self):
        self.gauges = Gauges("demo", "uda")
        self.trials = TrialGauge("sweep")
        PreemptionCounter("demo", "uda").add()

    def log(self, iteration):
        self.trials.set({"running": 3})
        self.gauges.set(iteration, {**logged, "target/gan": math.nan})

worker = Worker.remote()
for line in range(1000):
    ray.get(worker.log.remote(100 * (line + 1)))
    time.sleep(0.5)
"""

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is missing: apt-get install prometheus"
)


@contextmanager
def scraped_training(
    logged: Mapping[str, float], head: Path, variables: Mapping[str, str], folder: Path
) -> Iterator[str]:
    """Shows the metrics ``logged`` on a Ray, scrapes it every second, yields Prometheus' address.

    ``head`` is the folder of the Ray's head, ``variables`` is the environment of its clients, and
    ``folder`` keeps what Prometheus writes.
    """
    showing = subprocess.Popen(
        [sys.executable, "-c", SHOWING, json.dumps(logged)],
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
    )
    settings = folder / "monitoring"
    shutil.copytree(MONITORING, settings)
    (settings / "ray").symlink_to(head)
    file = settings / "prometheus.yml"
    assert file.read_text().count("15s") == 3
    file.write_text(file.read_text().replace("15s", "1s"))
    try:
        with _prometheus(settings, folder / "scraped") as address:
            yield address
    finally:
        showing.terminate()
        showing.wait()


@contextmanager
def _prometheus(settings: Path, storage: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={settings / 'prometheus.yml'}",
            f"--web.listen-address={address}",
            f"--storage.tsdb.path={storage}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def query(address: str, expression: str) -> list[dict[str, Any]]:
    """Prometheus' answer to an expression at this moment."""
    parameters = urllib.parse.urlencode({"query": expression})
    result: list[dict[str, Any]] = _get(f"{address}/api/v1/query?{parameters}")["result"]
    return result


def alert_rules(address: str) -> dict[str, dict[str, Any]]:
    """Alerts with their states, by name."""
    groups = _get(f"{address}/api/v1/rules?type=alert")["groups"]
    return {rule["name"]: rule for group in groups for rule in group["rules"]}


def _get(url: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        return json.load(answer)["data"]
