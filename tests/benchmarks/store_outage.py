"""A run in a store that refuses every connection for a while, against one that is left alone.

    PYTHONPATH=tests python tests/benchmarks/store_outage.py --seconds 60

The store is moto behind ``tests/faulty_store.py``; the outage begins with the run's first
checkpoint. Ends with 1 if the weights differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from faulty_store import FaultyStore
from random_kills import STAGES, dataset, experiment

from qdmr_ray.ray_cluster import ensure_ray
from qdmr_ray.storage import Location, open_location
from qdmr_ray.train.run import train_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name, FaultyStore() as store:
        # Ray's processes take them from here.
        os.environ.update(store.environment, AWS_ENDPOINT_URL=store.endpoint)
        data = dataset(Path(name))
        ensure_ray()
        runs = f"s3://{store.bucket}/runs"
        calm, calm_seconds = _trained(data, "calm", f"{name}/runs")
        first = open_location(f"{runs}/rough").join(STAGES[0], "checkpoints")
        threading.Thread(target=_fail, args=(store, first, seconds), daemon=True).start()
        rough, rough_seconds = _trained(data, "rough", runs)
        same = all(_weights(calm, stage) == _weights(rough, stage) for stage in STAGES)
    print(f"undisturbed {calm_seconds:.0f} s, with {seconds:.0f} s of outage {rough_seconds:.0f} s")
    print("same weights" if same else "OTHER weights")
    sys.exit(0 if same else 1)


def _trained(data: str, name: str, storage: str) -> tuple[Location, float]:
    began = time.monotonic()
    run = train_run(experiment(data, name), storage=storage, say=lambda _: None)
    return run, time.monotonic() - began


def _fail(store: FaultyStore, checkpoints: Location, seconds: float) -> None:
    while not any(place.join("complete.json").exists() for place in checkpoints.list()):
        time.sleep(0.2)
    print("outage begins", flush=True)
    store.refuse(seconds)


def _weights(run: Location, stage: str) -> bytes:
    return run.join(stage, "final", "model.safetensors").read_bytes()


if __name__ == "__main__":
    main()
