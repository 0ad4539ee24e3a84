"""A run whose data, checkpoints and results lie in an S3-compatible store (moto, over HTTP)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_ray import local_ray

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.models.files import load_model
from qdmr_ray.storage import open_location
from qdmr_ray.train.run import train_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
BUCKET = "lens"


@pytest.fixture
def store(s3_endpoint: str) -> Iterator[str]:
    """Address of an empty store with one bucket, for this process's Ray, too."""
    with local_ray():
        yield s3_endpoint


def test_a_run_may_live_in_a_store(store: str, tiny_dataset: Path) -> None:
    data = open_location(f"s3://{BUCKET}/data")
    for file in tiny_dataset.iterdir():
        data.join(file.name).write_bytes_atomic(file.read_bytes())
    values = {
        "name": "run",
        "run": ["source_only"],
        "data": {"path": data.uri, "loader_workers": 1},
        "network": {
            "widths": [8, 16],
            "residual_blocks": 1,
            "codebook_size": 16,
            "code_dim": 8,
            "swin": {"groups": 1, "blocks": 2, "heads": 2, "window": 4},
        },
        "discriminator": {"width": 4},
        "stages": {"source_only": {"iterations": 4, "batch_size": 2, "crop": 16, "lpips": 0}},
        "scaling": {"threads": 1, "max_failures": 0},
        "logging": {"log_interval": 1, "picture_interval": 4, "checkpoint_interval": 2},
    }
    experiment = experiment_from_dict(values)
    run = train_run(experiment, storage=f"s3://{BUCKET}/runs", say=lambda _: None)
    assert run.uri == f"s3://{BUCKET}/runs/run"
    stage = run.join("source_only")
    assert load_model(stage.join("final")).step == 4
    lines = stage.join("metrics.jsonl").read_bytes().decode().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3, 4]
    names = [place.name for place in stage.join("checkpoints").list()]
    assert {"checkpoint_000000002", "checkpoint_000000004"} <= set(names)
    assert stage.join("pictures", "samples.png").exists()
    assert run.join("tensorboard", "source_only").list()

    evaluation = evaluate_run(run)
    assert evaluation.images == 6
    assert Evaluation.read(run.join("evaluation.json")) == evaluation
    assert run.join("evaluation", "chelsea_0", "source_only.png").exists()

    said: list[str] = []
    train_run(experiment, storage=f"s3://{BUCKET}/runs", say=said.append)
    assert said == ["source_only: finished before, kept"]
