"""The time that Ray Train and the loop add to a stage that is stepped in a bare loop.

    python tests/benchmarks/ray_overhead.py --iterations 60 --repeats 3

Trains source-only at full size on crops of 64 out of noise: by ``train_run`` with one worker and in
this process on the same batches, cut beforehand, in turns, since a shared machine's pace drifts by
more than what is measured. Of each the lower quartile of means over ten iterations counts. Prints
JSON: seconds per iteration of both, the ratio, and seconds from the call of ``train_run`` to the
worker's first step. With one thread fewer than there are CPUs (``--threads``) Ray's own processes
have one to themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qdmr_ray.config import Experiment, experiment_from_dict
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.stream import InProcessStream
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.ray_cluster import ensure_ray
from qdmr_ray.stages import Components, build_stage
from qdmr_ray.train.run import train_run

STAGE, CROP, BATCH, WARM_UP = "source_only", 64, 2, 10
# A line is logged so often; gradients are measured in those steps only.
LOG_INTERVAL = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, help="PyTorch's threads; all CPUs by default")
    arguments = parser.parse_args()
    iterations = arguments.iterations
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        experiment = _experiment(noise_dataset(folder), iterations, arguments.threads)
        bare = [*_bare(experiment)]
        ensure_ray()
        trained: list[float] = []
        starts, lines = [], []
        for repeat in range(arguments.repeats):
            began = time.time()
            run = train_run(
                replace(experiment, name=f"run{repeat}"), storage=name, say=lambda _: None
            )
            text = run.join(STAGE, "metrics.jsonl").read_bytes().decode()
            new = [json.loads(line) for line in text.splitlines()]
            times = [line["time"] for line in new]
            seconds = np.diff(times) / LOG_INTERVAL
            starts.append(times[0] - began - LOG_INTERVAL * float(np.median(seconds)))
            trained += [float(value) for value in seconds]
            lines += new[1:]
            bare += _bare(experiment)
    figures = {
        "bare_seconds": _lower_quartile(bare),
        "train_seconds": _lower_quartile(trained),
        "ratio": _lower_quartile(trained) / _lower_quartile(bare),
        "ratio_of_medians": statistics.median(trained) / statistics.median(bare),
        "spread_of_bare": [min(bare), max(bare)],
        "spread_of_train": [min(trained), max(trained)],
        "seconds_to_first_step": starts,
        # Where the seconds went: medians of the lines after each first one.
        "phases": {
            name: statistics.median(line[name] for line in lines)
            for name in lines[-1]
            if name.startswith("time/")
        },
        "data_wait_fraction": statistics.mean(line["data_wait_fraction"] for line in lines),
    }
    print(json.dumps(figures, indent=1))


def noise_dataset(folder: Path) -> str:
    """Packs four pairs of noise under ``folder`` and returns the dataset's folder."""
    random = np.random.default_rng(0)
    for name in ("aberrated", "clean"):
        (folder / name).mkdir()
        for i in range(4):
            pixels = random.integers(0, 256, (480, 640, 3), dtype=np.uint8)
            write_png(folder / name / f"{i}.png", pixels)
    settings = PackSettings(source_images="aberrated", source_ground_truth="clean")
    pack(folder, str(folder / "packed"), settings=settings)
    return str(folder / "packed")


def _experiment(data: str, iterations: int, threads: int | None) -> Experiment:
    return experiment_from_dict(
        {
            "name": "overhead",
            "run": [STAGE],
            "data": {"path": data},
            "scaling": {"threads": threads},
            "stages": {
                STAGE: {"iterations": iterations, "batch_size": BATCH, "crop": CROP, "lpips": 0}
            },
            "logging": {
                "log_interval": LOG_INTERVAL,
                "picture_interval": 10 * iterations,
                "checkpoint_interval": 10 * iterations,
            },
        }
    )


def _lower_quartile(values: list[float]) -> float:
    return float(np.quantile(values, 0.25))


def _bare(experiment: Experiment) -> list[float]:
    """Seconds of a step in this process, each a mean over ten."""
    settings = experiment.stage(STAGE)
    torch.manual_seed(experiment.seed + zlib.crc32(STAGE.encode()))
    stage = build_stage(STAGE, settings, Components(network=experiment.network)).to("cpu")
    stream = InProcessStream(
        experiment.data,
        batch_size=BATCH,
        crop=CROP,
        same_place=settings.same_place_crops,
        sets=("source",),
        seed=experiment.seed,
        start_iteration=0,
        end_iteration=settings.iterations,
    )
    batches = [{name: batch[name].float() / 255 for name in stage.domains} for batch in stream]
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        stage.step(batch)
        seconds.append(time.perf_counter() - start)
    warm = np.array(seconds[WARM_UP:])
    return [
        float(v)
        for v in warm[: len(warm) // LOG_INTERVAL * LOG_INTERVAL]
        .reshape(-1, LOG_INTERVAL)
        .mean(axis=1)
    ]


if __name__ == "__main__":
    main()
