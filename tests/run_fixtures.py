"""Run folders made by hand, as training and evaluation would leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from qdmr_ray.models.files import save_model
from qdmr_ray.nets import VQGAN, NetworkSettings
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import Location, open_location

CONFIG = {
    "name": "demo",
    "run": ["vqgan", "base", "uda"],
    "code_version": "0.1.0",
    "stages": {
        "vqgan": {"iterations": 40, "l1": 1.0, "lpips": 0.0, "semantic": 0},
        "base": {"iterations": 40, "l1": 1.0, "lpips": 0.0},
        "uda": {"iterations": 40, "l1": 1.0, "lpips": 0.5},
        "source_only": {"iterations": 40, "lpips": 0.0},
    },
}
# What each picture of a photograph is painted with, so that a screenshot tells them apart.
COLOURS = {
    "input": (190, 30, 30),
    "base": (30, 150, 40),
    "uda": (30, 40, 190),
    "ground_truth": (120, 120, 120),
}
FIGURES = {
    "astronaut": {"input": 25.0, "base": 26.0, "uda": 27.5},
    "coffee": {"input": 30.0, "base": 29.0, "uda": 31.0},
    "chelsea": {"input": 20.0, "base": 21.0, "uda": None},
}

RunMaker = Callable[..., Path]
VQGANMaker = Callable[[Path, NetworkSettings, Path | str], Location]


@pytest.fixture(scope="session")
def make_run() -> RunMaker:
    """``make_run(folder, names=…)``: a complete run folder whose photographs have these names."""
    return _make_run


def _make_run(
    folder: Path, names: tuple[str, ...] = tuple(FIGURES), config: dict[str, Any] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or CONFIG, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.14.1", "device": "CPU"}))
    (folder / "notes.json").write_text(json.dumps(["LPIPS is switched off in this run."]))
    per_image = []
    for name, psnr in zip(names, FIGURES.values(), strict=True):
        (folder / "evaluation" / name).mkdir(parents=True)
        for kind, colour in COLOURS.items():
            picture = np.full((64, 96, 3), colour, dtype=np.uint8)
            write_png(folder / "evaluation" / name / f"{kind}.png", picture)
        stages = {stage: {"psnr": value, "ssim": 0.8} for stage, value in psnr.items()}
        per_image.append({"name": name, **stages})
    evaluation = {
        "images": 3,
        "input": {"psnr": 25.0, "ssim": 0.8},
        "stages": {"uda": {"psnr": 26.2, "ssim": 0.9}, "base": {"psnr": 24.7, "ssim": 0.8}},
        "per_image": per_image,
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    for stage in ("vqgan", "base", "uda"):
        lines = [
            {
                "iteration": i,
                "time": 1.0e9 + 2 * i,
                "source/l1": 1.0 / i,
                "target/l1": 2.0 / i,
                "source/lpips": 0.0,
                "codebook/source/perplexity": 10.0 + i,
                "time/step": 0.5,
            }
            for i in range(1, 41)
        ]
        (folder / stage / "pictures").mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / stage / "metrics.jsonl").write_text(text)
        atlas = np.zeros((40, 40, 3), dtype=np.uint8)
        write_png(folder / stage / "pictures" / "codebook_atlas.png", atlas)
    return folder


@pytest.fixture(scope="session")
def add_vqgan() -> VQGANMaker:
    """``add_vqgan(run, network, dataset)``: a VQGAN of random weights in a run folder, and the
    settings that lead from there to the dataset."""
    return _add_vqgan


def _add_vqgan(run: Path, network: NetworkSettings, dataset: Path | str) -> Location:
    run.mkdir(parents=True, exist_ok=True)
    config = {"name": "demo", "run": ["vqgan"], "data": {"path": str(dataset)}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    vqgan = VQGAN(network)
    # Codes as far apart as features are, so that more than one is chosen.
    torch.nn.init.normal_(vqgan.quantizer.codes)
    save_model(open_location(run / "vqgan" / "final"), vqgan, kind="vqgan", step=1, digest="d")
    return open_location(run)


@pytest.fixture
def store(s3_endpoint: str) -> Location:
    """A folder in an empty store."""
    return open_location("s3://lens/runs")
