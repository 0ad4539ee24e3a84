"""Seconds from ``qdmr train`` to the beginning of the first training step.

    python tests/benchmarks/first_step.py --runs 5

Each run is the command itself in a process of its own, with a Ray of its own: source-only at full
size, two iterations, crops of 64 out of noise, packed before. The first line of ``metrics.jsonl``
says when its step was over and how long it took. Files are cached: the first run warms them and
isn't counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from ray_overhead import BATCH, CROP, STAGE, noise_dataset

EXPERIMENT = {
    "run": [STAGE],
    "stages": {STAGE: {"iterations": 2, "batch_size": BATCH, "crop": CROP, "lpips": 0}},
    "logging": {"log_interval": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "start.yaml"
        file.write_text(yaml.safe_dump(EXPERIMENT | {"data": {"path": noise_dataset(folder)}}))
        seconds = [seconds_to_first_step(file, run) for run in range(arguments.runs + 1)][1:]
    print(
        json.dumps({"seconds_to_first_step": seconds, "within_15": sum(s <= 15 for s in seconds)})
    )


def seconds_to_first_step(file: Path, run: int) -> float:
    """Trains the experiment in ``file`` as a run of its own."""
    name, storage = f"run{run}", file.parent / "runs"
    command = [sys.executable, "-m", "qdmr_ray.cli", "train", str(file), "--name", name]
    began = time.time()
    subprocess.run([*command, "--storage", str(storage)], check=True, capture_output=True)
    lines = (storage / name / STAGE / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    return float(first["time"] - first["time/step"] - began)


if __name__ == "__main__":
    main()
