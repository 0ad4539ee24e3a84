"""Trainings of a few iterations, a fraction of a second each, for tests that start Ray."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch

from qdmr_ray.config import Experiment
from qdmr_ray.data.streaming.stream import InProcessStream
from qdmr_ray.models.files import load_model
from qdmr_ray.stages import STAGES, Components, build_stage

STAGE_NAMES = ("vqgan", "source_only", "base", "uda")
ITERATIONS = 4


def settings(data: Path, **changes: Any) -> dict[str, Any]:
    """Plain settings of a run that takes a fraction of a second per iteration."""
    stage = {"iterations": ITERATIONS, "batch_size": 2, "crop": 16, "lpips": 0}
    # Base goes through Ray with its extension, UDA without.
    own = {"vqgan": {"semantic": 0}, "base": {"code_guidance": 1.0}}
    return {
        "name": "run",
        "seed": 3,
        "run": list(STAGE_NAMES),
        "data": {"path": str(data), "loader_workers": 1, "batches_per_block": 2},
        "network": {
            "widths": [8, 16],
            "residual_blocks": 1,
            "codebook_size": 16,
            "code_dim": 8,
            "swin": {"groups": 1, "blocks": 2, "heads": 2, "window": 4},
        },
        "discriminator": {"width": 4},
        "stages": {name: {**stage, **own.get(name, {})} for name in STAGE_NAMES},
        "scaling": {"workers": 2, "cpus_per_worker": 0.5, "threads": 1, "max_failures": 0},
        "logging": {"log_interval": 1, "picture_interval": 4, "checkpoint_interval": 2},
        **changes,
    }


def bare_loop(experiment: Experiment, stage_name: str, run: Path, workers: int) -> list[dict]:
    """The same stage in a plain loop, one process doing what ``workers`` workers do together."""
    own = experiment.stage(stage_name)
    torch.manual_seed(experiment.seed + zlib.crc32(stage_name.encode()))
    components = Components(
        network=experiment.network,
        discriminator=experiment.discriminator,
        trained={n: load_model(run / n / "final").network for n in STAGES[stage_name].needs},
    )
    stage = build_stage(stage_name, own, components).to("cpu")
    stream = InProcessStream(
        experiment.data,
        batch_size=own.batch_size * workers,
        crop=own.crop,
        same_place=own.same_place_crops,
        sets=tuple(s for s in ("source", "target") if s in stage.domains),
        fields=stage.domains,
        seed=experiment.seed,
        start_iteration=0,
        end_iteration=own.iterations,
    )
    logged = []
    for batch in stream:
        losses = stage.step({name: batch[name].float() / 255 for name in stage.domains})
        logged.append({name: value.item() for name, value in losses.items()})
    return [*logged, stage.network.state_dict()]


def metrics_of(run: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
