"""Compares ASHA with random search at an equal budget, in ten sweeps on a Ray of two CPUs.

    python tests/benchmarks/asha_against_random.py

The trials are stand-ins of 27 iterations whose metric follows a learning curve, so that a sweep
takes seconds; samplers, Tune, its scheduler and the sweep's records are the real ones. The command
fails where ASHA finds less on the average, or begins fewer trials.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from qdmr_ray.data.demo import build_demo_data
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.sweeps.plan import load_sweep
from qdmr_ray.sweeps.run import sweep_run
from qdmr_ray.sweeps.trial import Tell, TrialContext, TrialReport

LENGTH = 27
# In trials that are trained to their end.
BUDGET = 6
# Wide enough for random search to miss the best for a while.
SPACE = {
    "stages.uda.gan": {"float": [1e-4, 1.0], "log": True},
    "stages.uda.feature_gan": {"float": [1e-4, 1.0], "log": True},
}
STOPPING = {"random": None, "asha": {"rule": "asha", "grace": 3, "reduction": 3}}


def quick_trial(config: Mapping[str, Any], context: TrialContext, tell: Tell) -> TrialReport:
    """Reports a metric that rises towards a height, which is best at gan = 0.02 and feature_gan =
    0.005; the better trials are ahead from the start, if not by as much."""
    gan, feature = (config["settings"][name] for name in SPACE)
    off = abs(math.log10(gan / 0.02)) + abs(math.log10(feature / 0.005))

    def at(iteration: int) -> TrialReport:
        return TrialReport(
            iteration=iteration,
            values=[(32 - 4 * off) * (1 - math.exp(-iteration / 9))],
            progress={"uda": iteration},
            stages={"uda": config["id"]},
            is_last=iteration == LENGTH,
        )

    for iteration in (3, 9):
        tell(at(iteration))
    return at(LENGTH)


def demo_experiment(folder: Path) -> dict[str, Any]:
    """An experiment over small demo photographs, which a sweep checks although it trains none."""
    realab = build_demo_data(folder / "realab", frame=(64, 96))
    pack(realab, str(folder / "packed"), settings=PackSettings())
    return {
        "run": ["vqgan", "uda"],
        "data": {"path": str(folder / "packed")},
        "network": {"widths": [8, 16], "swin": {"heads": 2, "window": 4}},
        "stages": {
            "vqgan": {"crop": 16, "lpips": 0, "semantic": 0},
            "uda": {"crop": 16, "lpips": 0},
        },
        "logging": {"validation_interval": 3},
        "evaluation": {"validation_share": 0.5},
        "scaling": {"cpus_per_worker": 0.5},
    }


def swept(folder: Path, rule: str, seed: int) -> tuple[float, int, int]:
    """Runs a sweep; returns the best value, the trials begun and the iterations trained."""
    sweep = {
        "name": f"{rule}{seed}",
        "experiment": "experiment.yaml",
        "seed": seed,
        "metric": "uda/validation/psnr",
        "space": SPACE,
        "stopping": STOPPING[rule],
        "sampler": "random",
        "baseline": False,
        "concurrent": 2,
        "iterations": LENGTH * BUDGET,
    }
    # JSON is YAML.
    (folder / "sweep.yaml").write_text(json.dumps(sweep))
    plan = load_sweep(folder / "sweep.yaml")
    results = sweep_run(plan, storage=str(folder), say=lambda _: None, body=quick_trial)
    best = results.trial(results.best)
    assert best is not None
    assert best.values is not None
    assert best.values[0] is not None
    return best.values[0], len(results.trials), sum(trial.iterations for trial in results.trials)


def main() -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init("local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    found: dict[str, list[float]] = {rule: [] for rule in STOPPING}
    begun: dict[str, list[int]] = {rule: [] for rule in STOPPING}
    with tempfile.TemporaryDirectory(prefix="qdmr-asha-") as scratch:
        experiment = demo_experiment(Path(scratch))
        (Path(scratch) / "experiment.yaml").write_text(json.dumps(experiment))
        for seed in range(5):
            for rule in STOPPING:
                best, trials, spent = swept(Path(scratch), rule, seed)
                found[rule].append(best)
                begun[rule].append(trials)
                print(
                    f"seed {seed}  {rule:6}  best {best:.2f}  {trials} trials, {spent} iterations"
                )
    for rule, values in found.items():
        print(f"{rule:6}  mean of the best {sum(values) / len(values):.2f}")
    if sum(found["asha"]) < sum(found["random"]) or min(begun["asha"]) <= max(begun["random"]):
        sys.exit("ASHA found less than random search, or began no more trials")


if __name__ == "__main__":
    main()
