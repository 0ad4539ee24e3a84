"""Validation beside training: the figures of `qdmr evaluate`, and no influence on the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from local_ray import local_ray
from safetensors.torch import load_file
from tiny_training import metrics_of, settings

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.errors import SettingsError
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.train.ray_trainer import InThisProcess, Launch, with_workers
from qdmr_ray.train.run import train_run
from qdmr_ray.train.validation import mean_metrics

HALF = {"validation_share": 0.5}
STAGE = "source_only"
EVERY_OTHER = {"log_interval": 4, "picture_interval": 4, "checkpoint_interval": 4}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


def experiment(data: Path, name: str, **changes: Any) -> dict[str, Any]:
    plain = settings(data, run=[STAGE], logging=EVERY_OTHER, evaluation=HALF)
    plain["scaling"]["workers"] = 1
    return plain | {"name": name} | changes


def train(plain: dict[str, Any], storage: Path, launch: Launch = with_workers, **options: Any):
    where = {"storage": str(storage), "say": lambda _: None}
    return train_run(experiment_from_dict(plain), launch=launch, **where, **options)


def test_the_mean_is_over_photographs_whatever_rank_measured_them() -> None:
    ranks = [{0: {"psnr": 20.0}, 2: {"psnr": 26.0}}, {1: {"psnr": 23.0}}, {}]
    assert mean_metrics(ranks) == {"validation/psnr": 23.0}


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("channels_last", [True, False])
def test_validation_changes_no_bit_of_training(
    cluster: None, tiny_dataset: Path, tmp_path: Path, channels_last: bool
) -> None:
    compute = {"channels_last": channels_last}
    weights = []
    for name, interval in (("without", None), ("with", 1)):
        logging = {**EVERY_OTHER, "validation_interval": interval}
        plain = experiment(tiny_dataset, name, compute=compute, logging=logging)
        run = train(plain, tmp_path, InThisProcess(sharing=1))
        weights.append(load_file(tmp_path / name / STAGE / "final" / "model.safetensors"))
        assert run.local_path == tmp_path / name
    without, validated = weights
    assert all(torch.equal(without[name], validated[name]) for name in without)
    lines = metrics_of(tmp_path / "with", STAGE)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    assert all("validation/psnr" in line for line in lines)
    assert "validation/psnr" not in metrics_of(tmp_path / "without", STAGE)[-1]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_two_workers_log_what_an_evaluation_finds(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    plain = experiment(tiny_dataset, "run", logging={**EVERY_OTHER, "validation_interval": 2})
    plain["scaling"]["workers"] = 2
    watched: list[tuple[str, int]] = []
    run = train(
        plain, tmp_path, watch=lambda stage, iteration, _: watched.append((stage, iteration))
    )
    lines = metrics_of(tmp_path / "run", STAGE)
    assert [line["iteration"] for line in lines if "validation/psnr" in line] == [2, 4]
    assert {(STAGE, 2), (STAGE, 4)} == set(watched)

    everything = evaluate_run(
        run, out=str(tmp_path / "all"), overrides=["evaluation.validation_share=0"]
    )
    kept = evaluate_run(run)
    names = {row.name: row.values[STAGE]["psnr"] for row in everything.per_image}
    unseen = {row.name for row in kept.per_image}
    assert len(names) == 2 * len(unseen)
    validated = [psnr for name, psnr in names.items() if name not in unseen]
    mean = sum(validated) / len(validated)
    assert lines[-1]["validation/psnr"] == pytest.approx(mean, rel=1e-5)
    named = evaluate_run(run, data=str(tiny_dataset), out=str(tmp_path / "named"))
    assert named.images == kept.images


@pytest.mark.parametrize("evaluation", [{}, {"validation_names": ["nowhere"]}])
def test_validation_on_nothing_is_refused_before_ray_starts(
    tiny_dataset: Path, tmp_path: Path, evaluation: dict[str, Any]
) -> None:
    logging = {**EVERY_OTHER, "validation_interval": 1}
    plain = experiment(tiny_dataset, "run", evaluation=evaluation, logging=logging)
    with pytest.raises(SettingsError, match="validation"):
        train(plain, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_best_checkpoint_may_be_chosen_by_validation(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    logging = {
        **EVERY_OTHER,
        "checkpoint_interval": 1,
        "keep_checkpoints": 1,
        "validation_interval": 1,
        "best_metric": "validation/psnr",
        "best_mode": "max",
    }
    plain = experiment(tiny_dataset, "run", logging=logging)
    # At this rate each step is worse than the one before.
    plain["stages"][STAGE]["optimizer"] = {"generator_lr": 1.0}
    train(plain, tmp_path, InThisProcess(sharing=1))
    lines = metrics_of(tmp_path / "run", STAGE)
    best = max(lines, key=lambda line: line["validation/psnr"])["iteration"]
    kept = sorted(p.name for p in (tmp_path / "run" / STAGE / "checkpoints").iterdir())
    assert {f"checkpoint_{best:09}", "checkpoint_000000004"} == set(kept)
    complete = tmp_path / "run" / STAGE / "checkpoints" / f"checkpoint_{best:09}/complete.json"
    assert "validation/psnr" in json.dumps(json.loads(complete.read_text()))
