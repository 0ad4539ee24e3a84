"""Sweeps of toy size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from local_ray import local_ray

from qdmr_ray.sweeps.plan import Plan, load_sweep

SPACE = {
    "network.codebook_size": {"choice": [16, 32]},
    "stages.uda.gan": {"float": [0.001, 0.1], "log": True},
}


def toy_experiment(data: Path, **changes: Any) -> dict[str, Any]:
    """Plain settings of runs that take seconds."""
    stage = {"iterations": 12, "batch_size": 2, "crop": 16, "lpips": 0}
    return {
        "run": ["vqgan", "uda"],
        "data": {"path": str(data), "loader_workers": 1, "batches_per_block": 2},
        "network": {
            "widths": [8, 16],
            "residual_blocks": 1,
            "codebook_size": 16,
            "code_dim": 8,
            "swin": {"groups": 1, "blocks": 2, "heads": 2, "window": 4},
        },
        "discriminator": {"width": 4},
        "stages": {
            "vqgan": {**stage, "semantic": 0},
            "base": stage,
            "uda": stage,
            "source_only": stage,
        },
        "scaling": {"cpus_per_worker": 0.5, "threads": 1, "max_failures": 2},
        "logging": {
            "log_interval": 4,
            "picture_interval": 12,
            "checkpoint_interval": 4,
            "validation_interval": 4,
        },
        "evaluation": {"validation_share": 0.5, "sheets": False},
        **changes,
    }


@pytest.fixture
def write_sweep(tmp_path: Path, tiny_dataset: Path) -> Callable[..., Path]:
    """Writes an experiment and a sweep over it; gives the sweep's file. ``sections`` replaces
    sections of the experiment."""

    def write(*, sections: dict[str, Any] | None = None, **changes: Any) -> Path:
        plain = toy_experiment(tiny_dataset, **(sections or {}))
        (tmp_path / "toy.yaml").write_text(yaml.safe_dump(plain))
        sweep = {
            "name": "sweep",
            "experiment": "toy.yaml",
            "metric": "uda/validation/psnr",
            "trials": 4,
            "space": SPACE,
        } | changes
        file = tmp_path / "sweep.yaml"
        file.write_text(
            yaml.safe_dump({k: v for k, v in sweep.items() if v is not None}, sort_keys=False)
        )
        return file

    return write


@pytest.fixture
def plan_of(write_sweep: Callable[..., Path]) -> Callable[..., Plan]:
    """The plan of such a sweep."""
    return lambda **changes: load_sweep(write_sweep(**changes))


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """A Ray that a module's tests share."""
    # Ray's workers can't import the tests, so a module's stand-ins travel to them.
    ray.cloudpickle.register_pickle_by_value(request.module)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with local_ray():
            yield
