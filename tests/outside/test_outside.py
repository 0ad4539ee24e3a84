"""A stage and a network of a user's package: everything works as with ours."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from qdmr_ray.config import Experiment, dump_experiment, experiment_from_dict, stage_digest
from qdmr_ray.errors import SettingsError
from qdmr_ray.models.authors import import_authors
from qdmr_ray.models.files import load_model, save_model
from qdmr_ray.ray_cluster import outside_code
from qdmr_ray.restore.restoration import restore, restore_tensor
from qdmr_ray.restore.tiled import restore_tiled
from qdmr_ray.stages import STAGES
from qdmr_ray.storage import open_location

PACKAGE = Path(__file__).with_name("sharp_lens")
KIND = "sharp_lens.net:SharpNet"
PLUGIN = "sharp_lens.stage"
ITERATIONS = 30


def settings(**changes: Any) -> dict[str, Any]:
    stage = {"iterations": ITERATIONS, "batch_size": 2, "crop": 20, "lpips": 0}
    return {
        "name": "run",
        "run": ["edges"],
        "plugins": [PLUGIN],
        "network": {"kind": KIND, "width": 4},
        "discriminator": {"width": 4},
        "stages": {"edges": {**stage, "edges": 0.25, "gan": 0}},
        "scaling": {"workers": 1, "threads": 1},
        "logging": {"log_interval": 1, "picture_interval": 10, "checkpoint_interval": 2},
        **changes,
    }


@pytest.fixture(autouse=True)
def _stages_as_before() -> Iterator[None]:
    """What a test adds to the stages is gone after it."""
    before = dict(STAGES)
    yield
    STAGES.clear()
    STAGES.update(before)


@pytest.fixture
def experiment() -> Experiment:
    return experiment_from_dict(settings())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the package and an experiment, as a user's project would be."""
    shutil.copytree(PACKAGE, tmp_path / "sharp_lens")
    return tmp_path


def qdmr(project: Path, *words: str) -> str:
    """What a command prints; it is run in the project's folder."""
    command = [sys.executable, "-m", "qdmr_ray.cli", *words]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_ordinary_commands_train_resume_evaluate_restore_and_report(
    project: Path, tiny_dataset: Path
) -> None:
    file = project / "mine.yaml"
    file.write_text(yaml.safe_dump(settings(data={"path": str(tiny_dataset)})))
    stage = project / "runs" / "run" / "edges"
    train = ["train", file.name]
    kill_after_a_checkpoint(project, train, stage)
    qdmr(project, *train)
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert lines[-1]["source/edges"] < lines[0]["source/edges"]

    qdmr(project, "evaluate", "runs/run")
    evaluation = json.loads((project / "runs/run/evaluation.json").read_text())
    assert evaluation["stages"]["edges"]["psnr"] > 10

    photograph = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(project / "photo.png")
    qdmr(project, "restore", "photo.png", "--checkpoint", str(stage / "final"), "--out", "out")
    restored = np.asarray(Image.open(project / "out" / "photo.png"))
    assert restored.shape == photograph.shape
    model = load_model(stage / "final")
    assert np.array_equal(restored, restore(photograph, model))

    qdmr(project, "report", "runs/run")
    # A page imports nothing of the user's: the stage stands there under its own name.
    assert "edges" in (project / "runs/run/report.html").read_text()


def kill_after_a_checkpoint(project: Path, words: list[str], stage: Path) -> None:
    """Starts the command and ends it with all its processes as soon as a checkpoint is there."""
    command = [sys.executable, "-m", "qdmr_ray.cli", *words]
    driver = subprocess.Popen(
        command, cwd=project, start_new_session=True, stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 240
    try:
        while not list(stage.glob("checkpoints/*/complete.json")):
            assert driver.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < end, "no checkpoint in four minutes"
            time.sleep(0.05)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert not (stage / "final").exists()


def test_its_settings_are_typed_and_saved_like_ours(experiment: Experiment) -> None:
    assert experiment.stage("edges").edges == 0.25  # type: ignore[attr-defined]
    assert experiment.network.width == 4  # type: ignore[attr-defined]
    assert experiment.stage("uda").iterations == 400_000
    saved = yaml.safe_load(dump_experiment(experiment))
    assert saved["stages"]["edges"]["edges"] == 0.25
    del saved["code_version"]
    assert experiment_from_dict(saved) == experiment
    assert pickle.loads(pickle.dumps(experiment)) == experiment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": {"edges": {"edgs": 1}}}, r"unknown setting stages\.edges\.edgs; did you mean"),
        ({"stages": {"edges": {"edges": -1}}}, r"stages\.edges\.edges must be at least 0"),
        ({"network": {"kind": KIND, "widths": [8]}}, r"unknown setting network\.widths"),
        ({"network": {"kind": "nafnot"}}, r"no network is called 'nafnot': known are qdmr"),
        ({"network": {"kind": "sharp_lens.net:Blurr"}}, r"has no subclass of .* called Blurr"),
        ({"network": {"kind": "no_such.net:Net"}}, r"no_such\.net: can't be imported"),
        ({"network": {"kind": "vqgan"}}, r"'vqgan', which is no restoration network"),
        ({"plugins": ["sharp_lens.net"]}, r"plugins: sharp_lens\.net defines no stage"),
        ({"plugins": ["no_such"]}, r"no_such: can't be imported \(ModuleNotFoundError"),
        ({"plugins": PLUGIN}, r"plugins is 'sharp_lens\.stage'"),
        ({"run": ["vqgan", "base"]}, r"run has vqgan, which trains networks of kind qdmr"),
        ({"run": ["edge"]}, r"run must be one of vqgan.*edges; it is 'edge'"),
    ],
)
def test_what_is_wrong_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"mine.yaml: .*{message}"):
        experiment_from_dict(settings(**changes), source="mine.yaml")


def test_a_new_version_of_stage_or_network_is_another_result(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {stage_digest(experiment, "edges", "0")}
    from sharp_lens.net import SharpNet

    monkeypatch.setattr(STAGES["edges"], "version", 2)
    digests.add(stage_digest(experiment, "edges", "0"))
    monkeypatch.setattr(SharpNet, "version", 2)
    digests.add(stage_digest(experiment, "edges", "0"))
    wider = replace(experiment, network=replace(experiment.network, width=5))
    digests.add(stage_digest(wider, "edges", "0"))
    assert len(digests) == 4


def test_its_package_is_sent_to_the_nodes_of_a_cluster(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outside_code(experiment.outside_modules) == {}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert outside_code(experiment.outside_modules) == {"py_modules": [str(PACKAGE)]}
    assert outside_code(experiment_from_dict({}).outside_modules) == {}


def test_tiles_are_the_whole_photograph_where_the_network_reaches_no_farther() -> None:
    from sharp_lens.net import SharpNet, SharpSettings

    network = SharpNet(SharpSettings())
    x = torch.rand(1, 3, 70, 101)
    shares: list[float] = []
    tiled = restore_tiled(
        lambda tile: restore_tensor(network, tile),
        x,
        multiple=1,
        overlap=network.overlap,
        tile=32,
        progress=shares.append,
    )
    assert torch.allclose(tiled, restore_tensor(network, x), atol=1e-6)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) > 6


def test_foreign_weights_come_in_through_the_network_itself(tmp_path: Path) -> None:
    from sharp_lens.net import SharpNet, SharpSettings

    network = SharpNet(SharpSettings(width=5))
    theirs = {k.replace("body", "layers"): v for k, v in network.state_dict().items()}
    torch.save({"params": theirs}, tmp_path / "theirs.pth")
    out = open_location(tmp_path / "model")
    import_authors(tmp_path / "theirs.pth", KIND, out)
    model = load_model(out)
    assert (model.kind, model.network.settings.width) == (KIND, 5)  # type: ignore[union-attr]
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(model.network(x), network(x))


def test_a_model_folder_says_which_class_it_is_of(tmp_path: Path) -> None:
    from sharp_lens.net import SharpNet, SharpSettings

    out = open_location(tmp_path / "model")
    save_model(out, SharpNet(SharpSettings()), kind="edges", step=1, digest="d")
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description["architecture"] == KIND
    assert isinstance(load_model(out).network, SharpNet)
