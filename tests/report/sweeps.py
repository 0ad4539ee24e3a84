"""Sweeps made by hand, as the sweep's command would leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PSNR, LPIPS = "uda/validation/psnr", "uda/validation/lpips"
SPACE: dict[str, dict[str, Any]] = {
    "network.codebook_size": {"choice": [32, 64]},
    "stages.uda.gan": {"float": [0.001, 0.1], "log": True},
    "stages.uda.feature_gan": {"choice": [0.0, 0.1]},
    "stages.uda.target_feature": {
        "float": [0.0, 1.0],
        "when": {"stages.uda.feature_gan": [0.1]},
    },
}


def trial(number: int, values: list[float | None] | None, **others: Any) -> dict[str, Any]:
    """A finished trial with a history that rises to its values."""
    history = [
        {"iteration": 100 * (step + 1), "values": [v and v - 2 + step for v in values]}
        for step in range(3)
        if values
    ]
    return {
        "id": f"{number:04}",
        "number": number,
        "name": None,
        "seed": 0,
        "state": "finished",
        "settings": {
            "network.codebook_size": 64,
            "stages.uda.gan": 0.001 * 10 ** (number % 3),
            "stages.uda.feature_gan": 0.0,
        },
        "metrics": {},
        "values": values,
        "history": history,
        "progress": {"uda": 300},
        "seconds": 40.2,
        "begun": None,
        "ended": None,
        "stages": {"vqgan": "a", "base": "b", "uda": "c"},
        "trained": ["uda"],
        "error": None,
        **others,
    }


def sweep(trials: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
    """A search for the highest PSNR; the best is the first of the trials."""
    best = trials[0]["id"] if trials else None
    return {
        "name": "demo",
        "code_version": "0.1.0+gabc",
        "metrics": [{"name": PSNR, "mode": "max"}],
        "sampler": "tpe",
        "stopping": {"rule": "asha", "grace": 75, "reduction": 3},
        "space": SPACE,
        "trials": trials,
        "best": best,
        "front": [best] if best else [],
        "baseline": None,
        "repeats": [],
        "test": None,
        "importances": {},
        "stages_trained": {},
        "seconds": 812.0,
        **others,
    }


def search() -> dict[str, Any]:
    """Six trials in every state, the best of them 0002, two of them with other seeds."""
    settings = {
        "network.codebook_size": 32,
        "stages.uda.gan": 0.01,
        "stages.uda.feature_gan": 0.1,
        "stages.uda.target_feature": 0.25,
    }
    own = {"network.codebook_size": 64, "stages.uda.gan": 0.0, "stages.uda.feature_gan": 0.0}
    trials = [
        trial(0, [26.0], settings=own, trained=["vqgan", "base", "uda"]),
        trial(1, [24.0], state="stopped", progress={"uda": 100}),
        trial(2, [27.1], settings=settings),
        trial(3, None, state="failed", history=[], error="CUDA out of memory", trained=[]),
        trial(4, [26.5]),
        trial(5, None, state="running", history=[], stages={}, trained=[], seconds=0.0),
    ]
    trials[1]["history"] = trials[1]["history"][:1]
    trials += [
        trial(2, [27.0], id="0002-s1", seed=1, settings=settings),
        trial(2, [27.2], id="0002-s2", seed=2, settings=settings),
    ]
    repeats = {
        "of": "0002",
        "seeds": [0, 1, 2],
        "trials": ["0002", "0002-s1", "0002-s2"],
        "values": [[27.1], [27.0], [27.2]],
        "mean": [27.1],
        "std": [0.08],
    }
    figures = {
        "0002": {"psnr": 27.4, "ssim": 0.82},
        "0000": {"psnr": 26.9, "ssim": 0.81},
    }
    return sweep(
        trials,
        best="0002",
        front=["0002"],
        baseline="0000",
        repeats=[repeats],
        test={"images": 3, "trials": figures, "input": {"psnr": 24.0, "ssim": 0.7}},
        importances={"stages.uda.gan": 0.6, "network.codebook_size": 0.1},
        stages_trained={"vqgan": 1, "base": 1, "uda": 6},
    )


def two_objectives() -> dict[str, Any]:
    """PSNR to maximise and LPIPS to minimise; 0000, 0001 and 0002 are the front."""
    values = [[27.0, 0.3], [26.0, 0.2], [25.0, 0.1], [24.0, 0.25], [25.5, 0.35]]
    trials = [trial(number, list(both)) for number, both in enumerate(values)]
    metrics = [{"name": PSNR, "mode": "max"}, {"name": LPIPS, "mode": "min"}]
    return sweep(trials, metrics=metrics, best=None, front=["0000", "0001", "0002"])


def ablation() -> dict[str, Any]:
    """Three variants with two seeds each; the last has failed."""
    trials = []
    for number, (name, value) in enumerate([("full", 26.0), ("no codebook", 25.0), ("odd", None)]):
        for seed in (0, 1):
            made = trial(number, value and [value + 0.2 * seed], name=name, seed=seed, settings={})
            made["id"] += f"-s{seed}" if seed else ""
            if value is None:
                made.update(state="failed", history=[], error="no such stage")
            trials.append(made)
    return sweep(trials, name="ablation", space={}, sampler="grid", baseline="0000")


def write(folder: Path, content: Any) -> Path:
    """The sweep's folder with this ``sweep.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder
