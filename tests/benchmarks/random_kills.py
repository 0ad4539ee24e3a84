"""Runs whose training worker is killed at random moments, against one that is left alone.

    python tests/benchmarks/random_kills.py --runs 20

Trains the stages vqgan and uda at toy size, first undisturbed, then again and again with SIGKILL
to the worker after a random time, up to twice per run. Prints a line per run, and ends with 1 if
one has other weights than the undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from qdmr_ray.config import Experiment, experiment_from_dict
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.ray_cluster import ensure_ray
from qdmr_ray.train.run import train_run

STAGES = ("vqgan", "uda")
ITERATIONS = 120
MOST_KILLS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    different = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = dataset(folder)
        ensure_ray()
        began = time.monotonic()
        expected = _weights(_train(experiment(data, "calm"), folder))
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        for run in range(arguments.runs):
            moments = sorted(chance.uniform(0, seconds) for _ in range(MOST_KILLS))
            with Killer(moments) as killer:
                found = _weights(_train(experiment(data, f"run{run}"), folder))
            same = found == expected
            different += not same
            killed = ", ".join(f"{moment:.1f} s" for moment in killer.done) or "nobody"
            print(f"run {run}: killed after {killed}; {'same' if same else 'OTHER'} weights")
            sys.stdout.flush()
    print(f"{arguments.runs - different} of {arguments.runs} runs with the same weights")
    sys.exit(1 if different else 0)


class Killer(threading.Thread):
    """Kills the training worker when its moments come; one that isn't there yet is waited for."""

    def __init__(self, moments: list[float]) -> None:
        super().__init__(daemon=True)
        self._moments, self._over = moments, threading.Event()
        self.done: list[float] = []

    def __enter__(self) -> Killer:
        self._began = time.monotonic()
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        for moment in self._moments:
            while not self._over.wait(0.01):
                elapsed = time.monotonic() - self._began
                workers = _training_workers() if elapsed >= moment else []
                if workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(workers[0], signal.SIGKILL)
                        self.done.append(elapsed)
                    break


def _training_workers() -> list[int]:
    """Process ids of the training workers below this process."""
    parents, named = {}, []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            process = int(entry.name)
            parents[process] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                named.append(process)
    return [process for process in named if _is_below(process, parents)]


def _is_below(process: int, parents: dict[int, int]) -> bool:
    while process in parents:
        process = parents[process]
        if process == os.getpid():
            return True
    return False


def _train(experiment: Experiment, folder: Path) -> Path:
    run = train_run(experiment, storage=str(folder / "runs"), say=lambda _: None)
    assert run.local_path is not None
    return run.local_path


def _weights(run: Path) -> list[bytes]:
    return [(run / stage / "final" / "model.safetensors").read_bytes() for stage in STAGES]


def dataset(folder: Path) -> str:
    pixels = np.random.default_rng(0)
    for name in ("aberrated", "clean", "photographs"):
        (folder / name).mkdir()
        for i in range(3):
            image = pixels.integers(0, 256, (64, 96, 3), dtype=np.uint8)
            write_png(folder / name / f"{i}.png", image)
    settings = PackSettings(
        source_images="aberrated", source_ground_truth="clean", target_images="photographs"
    )
    pack(folder, str(folder / "packed"), settings=settings)
    return str(folder / "packed")


def experiment(data: str, name: str) -> Experiment:
    stage: dict[str, Any] = {"iterations": ITERATIONS, "batch_size": 2, "crop": 32, "lpips": 0}
    return experiment_from_dict(
        {
            "name": name,
            "run": list(STAGES),
            "data": {"path": data},
            "network": {
                "widths": [8, 16],
                "residual_blocks": 1,
                "codebook_size": 16,
                "code_dim": 8,
                "swin": {"groups": 1, "blocks": 2, "heads": 2, "window": 4},
            },
            "discriminator": {"width": 4},
            "stages": {"vqgan": {**stage, "semantic": 0}, "uda": stage},
            "scaling": {"threads": 1, "max_failures": 2 * MOST_KILLS},
            "logging": {
                "log_interval": 10,
                "picture_interval": ITERATIONS,
                "checkpoint_interval": 15,
            },
        }
    )


if __name__ == "__main__":
    main()
