"""Every way to compute a step on a GPU, one after the other in one process, as a table.

    PYTHONPATH=. python tests/benchmarks/gpu.py
    PYTHONPATH=. python tests/benchmarks/gpu.py --stages base --builds plain bfloat16+graph

What ``qdmr bench step`` measures, for some builds: ``plain``, ``float32``, ``tf32`` or
``bfloat16``, the last three with or without ``+graph`` and ``+compile``. Needs PyTorch and NumPy
alone. A build that runs out of memory is told and left out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from loss_curves import build_called

from qdmr_ray.bench.step import StepBench, bench_step
from qdmr_ray.stages import STAGES

BUILDS = ("plain", "float32", "tf32", "bfloat16", "bfloat16+graph", "bfloat16+graph+compile")
HEAD = (
    "| stage | batch | build | a step | plain / this | floor | ratio | first step | peak memory |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)

RATES = {
    "gflops_measured": "GFLOP/s (matrix product)",
    "gflops_convolution": "GFLOP/s",
    "gigabytes_copied_per_second": "GB/s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["uda"])
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--builds", nargs="+", default=list(BUILDS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="full")
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    arguments = parser.parse_args()
    print(HEAD)
    found: list[dict[str, Any]] = []
    for stage, batch in itertools.product(arguments.stages, arguments.batches):
        bench = StepBench(
            stage=stage,
            size=arguments.size,
            batch=batch,
            device=arguments.device,
            preset=arguments.preset,
        )
        plain: float | None = None
        for build in arguments.builds:
            figures = measured(build_called(bench, build))
            if figures is None:
                print(f"| {stage} | {batch} | {build} | out of memory |", flush=True)
                continue
            if build == "plain":
                plain = figures["seconds_per_step"]
            print(row(build, figures, plain), flush=True)
            found.append({"build": build, **figures})
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1))
    if not found:
        return
    print(f"{found[-1]['device']}, torch {found[-1]['torch']}; in the runs above, one by one:")
    for name, unit in RATES.items():
        print(f"{name}: {' '.join(f'{figures[name]:.0f}' for figures in found)} {unit}")


def measured(bench: StepBench) -> dict[str, Any] | None:
    """None where the memory is too small; leaves none taken."""
    try:
        return bench_step(bench)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if bench.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def row(build: str, figures: dict[str, Any], plain: float | None) -> str:
    """A line of the table; ``plain`` is the plain build's seconds, if it was measured."""
    seconds = figures["seconds_per_step"]
    cells = (
        figures["stage"],
        f"{figures['batch']}",
        build,
        f"{seconds * 1e3:.1f} ms",
        "" if plain is None else f"{plain / seconds:.2f}",
        f"{figures['floor_seconds'] * 1e3:.1f} ms",
        f"{figures['ratio']:.2f}",
        f"{figures['start_seconds']:.1f} s",
        f"{figures['peak_memory_bytes'] / 1e9:.2f} GB",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
