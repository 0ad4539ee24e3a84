"""Real Ray Train runs on two workers, then judged; data and settings that fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml
from local_ray import local_ray
from safetensors.torch import load_file
from tiny_training import ITERATIONS, bare_loop, metrics_of, settings

from qdmr_ray.config import Experiment, experiment_from_dict
from qdmr_ray.data.format.index import set_index
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.evaluate.metrics.psnr import psnr
from qdmr_ray.evaluate.metrics.ssim import ssim
from qdmr_ray.models.authors import import_authors
from qdmr_ray.models.documents import Environment, Notes
from qdmr_ray.models.files import load_model
from qdmr_ray.nets import VQGAN
from qdmr_ray.nets.adapter import to_authors
from qdmr_ray.photographs.decode import read_image
from qdmr_ray.report import build_report
from qdmr_ray.storage import Location, open_location
from qdmr_ray.train.loop import Task, Worker
from qdmr_ray.train.ray_trainer import InThisProcess
from qdmr_ray.train.run import train_run
from qdmr_ray.train.worker_context import Host

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
STAGES = ("vqgan", "uda")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def trained(
    cluster: None, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, Path]:
    """A run on two workers, of a stage and of one that needs it."""
    experiment = experiment_from_dict(settings(tiny_dataset, run=list(STAGES)))
    storage = tmp_path_factory.mktemp("runs")
    location = train_run(experiment, storage=str(storage), say=lambda _: None)
    assert location.local_path == storage / "run"
    return experiment, storage / "run"


def train_here(values: dict[str, Any], storage: Path, **options: Any) -> Location:
    """Trains in this process, where starting training workers would add nothing to the test."""
    values["scaling"]["workers"] = 1
    options = {"launch": InThisProcess(sharing=1), "say": str} | options
    return train_run(experiment_from_dict(values), storage=str(storage), **options)


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_compute_what_one_process_does(
    trained: tuple[Experiment, Path], stage: str
) -> None:
    experiment, run = trained
    *expected, _ = bare_loop(experiment, stage, run, workers=2)
    found = metrics_of(run, stage)
    assert [line["iteration"] for line in found] == [1, 2, 3, 4]
    for line, losses in zip(found, expected, strict=True):
        # Means over one worker's own batch, which don't average to those of the whole batch.
        for name in [n for n in losses if not n.startswith("codebook/")]:
            # Adam's first steps have the size of the learning rate whatever the gradient's: where
            # that is rounding noise, weights part by up to 1e-4 per iteration.
            assert line[name] == pytest.approx(losses[name], rel=2e-2, abs=2e-4), (stage, name)
    first = {n: v for n, v in expected[0].items() if not n.startswith("codebook/")}
    generator = {n: v for n, v in first.items() if "discriminator" not in n}
    assert {n: found[0][n] for n in generator} == pytest.approx(generator, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_result_checkpoints_curves_and_pictures(
    trained: tuple[Experiment, Path], stage: str
) -> None:
    _, run = trained
    model = load_model(run / stage / "final")
    assert model.step == ITERATIONS
    checkpoints = sorted(p.name for p in (run / stage / "checkpoints").glob("checkpoint_0*"))
    assert checkpoints == ["checkpoint_000000002", "checkpoint_000000004"]
    assert list((run / "tensorboard" / stage).glob("events.out.tfevents.*"))
    pictures = {file.stem for file in (run / stage / "pictures").glob("*.png")}
    assert pictures == ({"samples", "codebook_atlas"} if stage == "vqgan" else {"samples"})
    last = metrics_of(run, stage)[-1]
    for name in ("time/data_wait", "time/step", "data_wait_fraction", "samples_per_second"):
        assert last[name] >= 0
    assert last["learning_rate/generator"] == pytest.approx(1e-4)


def test_the_run_records_every_setting(trained: tuple[Experiment, Path]) -> None:
    experiment, run = trained
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved.pop("code_version")
    assert saved == experiment.to_dict()
    notes = Notes.read(open_location(run / "notes.json")).notes
    assert any("lpips" in note for note in notes)
    environment = Environment.read(open_location(run / "environment.json"))
    assert (environment.workers, environment.ray) == ("2", ray.__version__)


def test_a_finished_run_is_left_alone(trained: tuple[Experiment, Path]) -> None:
    experiment, run = trained
    before = {p: p.stat().st_mtime_ns for p in run.rglob("model.safetensors")}
    said: list[str] = []
    train_run(experiment, storage=str(run.parent), say=said.append)
    assert said == [f"{stage}: finished before, kept" for stage in STAGES]
    assert {p: p.stat().st_mtime_ns for p in run.rglob("model.safetensors")} == before


def test_other_settings_under_the_same_name_are_refused(trained: tuple[Experiment, Path]) -> None:
    experiment, run = trained
    values = experiment.to_dict()
    values["stages"]["uda"]["l1"] = 2.0
    with pytest.raises(QdmrError, match=r"stage uda .*stages\.uda\.l1 was 1\.0, now 2\.0"):
        train_run(experiment_from_dict(values), storage=str(run.parent), say=lambda _: None)


def test_evaluation_measures_every_stage_and_reports(trained: tuple[Experiment, Path]) -> None:
    _, run = trained
    evaluation = evaluate_run(open_location(run))
    assert evaluation.to_dict() == json.loads((run / "evaluation.json").read_text())
    assert set(evaluation.stages) == {"uda"}
    assert evaluation.images == len(evaluation.per_image) == 6
    for row in evaluation.per_image:
        folder = run / "evaluation" / row.name
        truth = read_image(folder / "ground_truth.png")
        for name in ("input", "uda"):
            image = read_image(folder / f"{name}.png")
            assert row.values[name]["psnr"] == pytest.approx(psnr(image, truth))
            assert row.values[name]["ssim"] == pytest.approx(ssim(image, truth))
    mean = np.mean([row.values["uda"]["psnr"] for row in evaluation.per_image])
    assert evaluation.stages["uda"]["psnr"] == pytest.approx(mean)
    page = Path(build_report(run)).read_text()
    assert "astronaut" in page


def test_a_cut_shard_is_refused_before_anything_starts(tiny_dataset: Path, tmp_path: Path) -> None:
    data = copied(tiny_dataset, tmp_path / "data")
    shard = next(data.glob("source-0*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    values = settings(data, run=["source_only"])
    with pytest.raises(QdmrError, match=rf"{shard.name}: has \d+ bytes, not \d+") as caught:
        train_run(experiment_from_dict(values), storage=str(tmp_path / "runs"), say=lambda _: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_broken_records_end_a_run_or_are_counted_by_setting(
    cluster: None, tiny_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = copied(tiny_dataset, tmp_path / "data")
    shard = next(data.glob("source-0*.parquet"))
    pixels = bytearray(shard.read_bytes())
    # In every record's photograph: three of four rows of pixels.
    for place in range(0, len(pixels) - 2000, 97):
        pixels[place] ^= 1
    index = read_manifest(open_location(data)).set("source")
    whole = set_index(open_location(data), index)[0]
    good = shard.read_bytes()[: whole.image_bytes * 2 + 4000]
    pixels[: len(good)] = good
    shard.write_bytes(pixels)
    values = settings(data, run=["source_only"])
    values["scaling"]["max_failures"] = 3
    with pytest.raises(QdmrError, match=rf"{shard.name}: wrong checksum.*row \d+") as caught:
        train_run(experiment_from_dict(values), storage=str(tmp_path / "stop"), say=lambda _: None)
    assert "\n" not in str(caught.value)
    # Workers were started once: what broken data did, it would do again.
    assert len(list((tmp_path / "stop" / "run" / "tensorboard" / "source_only").iterdir())) == 1
    values["data"]["skip_broken"] = True
    # One worker, whose warning the command prints.
    values["scaling"]["workers"] = 1
    run = train_run(experiment_from_dict(values), storage=str(tmp_path / "skip"), say=str)
    lines = metrics_of(Path(run.path), "source_only")
    assert sum(line["broken_records"] for line in lines) > 0
    told = [line for line in capfd.readouterr().err.splitlines() if "qdmr: warning" in line]
    assert sum(f"{data}: broken records are passed over" in line for line in told) == 1


@pytest.mark.parametrize(
    ("interval", "named"),
    [
        (1, "weights is not finite after iteration 1;"),
        (8, r"source/\w+ is not finite from iteration 2 on"),
    ],
)
def test_a_run_that_diverges_stops_before_a_bad_state_is_kept(
    cluster: None, tiny_dataset: Path, tmp_path: Path, interval: int, named: str
) -> None:
    values = settings(tiny_dataset, run=["source_only"])
    values["stages"]["source_only"] |= {"iterations": 8, "optimizer": {"generator_lr": 1e30}}
    values["logging"] |= {"log_interval": 8, "checkpoint_interval": interval}
    # The first step's losses are finite, the weights that it makes are hopeless.
    with pytest.raises(QdmrError, match=named) as caught:
        train_here(values, tmp_path)
    assert "\n" not in str(caught.value)
    stage = tmp_path / "run" / "source_only"
    assert list(stage.rglob("complete.json")) == []
    assert not (stage / "final").exists()


def test_a_run_that_may_go_on_with_broken_weights_keeps_none_of_them(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    values = settings(tiny_dataset, run=["source_only"], guard={"non_finite": "warn"})
    values["stages"]["source_only"]["optimizer"] = {"generator_lr": 1e30}
    with pytest.raises(QdmrError, match="weights are not finite after the last iteration"):
        train_here(values, tmp_path)
    stage = tmp_path / "run" / "source_only"
    assert list(stage.rglob("complete.json")) == []
    assert not (stage / "final").exists()
    assert [line["iteration"] for line in metrics_of(tmp_path / "run", "source_only")] == [
        *range(1, ITERATIONS + 1)
    ]


def test_a_disk_that_the_worker_does_not_share_is_named(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    experiment = experiment_from_dict(settings(tiny_dataset, run=["source_only"]))
    elsewhere = tmp_path / "elsewhere"
    task = Task(experiment.to_dict(), "source_only", str(elsewhere), "0" * 64, {})
    host = Host(gpu=False)
    with pytest.raises(QdmrError, match=f"{elsewhere}.*name a --storage that all nodes reach"):
        Worker(task, host)
    assert not elsewhere.exists()


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_too_few_cpus_are_told_before_anything_starts(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    experiment = experiment_from_dict(settings(tiny_dataset, run=["source_only"]))
    greedy = replace(experiment, scaling=replace(experiment.scaling, cpus_per_worker=1.0))
    with pytest.raises(SettingsError, match=r"2 workers need 2\.5 CPUs .* Ray has 2"):
        train_run(greedy, storage=str(tmp_path), say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_paths_of_weights_are_made_absolute_and_named_when_missing(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker runs in a folder of Ray's, where a relative path means another file."""
    monkeypatch.chdir(tmp_path)
    values = settings(tiny_dataset, run=["source_only"], weights={"vgg16": "vgg/vgg16.pth"})
    values["stages"]["source_only"]["lpips"] = 1.0
    with pytest.raises(QdmrError, match=str(tmp_path / "vgg" / "vgg16.pth")):
        train_run(experiment_from_dict(values), storage=str(tmp_path), say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_base_trains_on_an_imported_vqgan(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    values = settings(tiny_dataset, run=["vqgan", "base"])
    experiment = experiment_from_dict(values)
    torch.manual_seed(0)
    own = VQGAN(experiment.network)
    torch.save({"params": to_authors("s2t", own.state_dict())}, tmp_path / "authors.pth")
    final = tmp_path / "run" / "vqgan" / "final"
    import_authors(tmp_path / "authors.pth", "vqgan", open_location(str(final)))
    other = settings(tiny_dataset, run=["vqgan", "base"])
    other["network"]["codebook_size"] = 32
    with pytest.raises(SettingsError, match=r"network\.codebook_size is 32, .* has 16"):
        train_run(experiment_from_dict(other), storage=str(tmp_path), stages=["base"])
    said: list[str] = []
    train_here(values, tmp_path, say=said.append)
    assert said[0] == "vqgan: finished before, kept"
    *expected, _ = bare_loop(experiment, "base", tmp_path / "run", workers=1)
    found = metrics_of(tmp_path / "run", "base")
    assert found[0]["source/l1"] == pytest.approx(expected[0]["source/l1"], rel=1e-4)
    trained = load_file(tmp_path / "run" / "base" / "final" / "model.safetensors")
    assert torch.equal(trained["quantizer.codes"], own.quantizer.codes)
