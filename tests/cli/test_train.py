"""``qdmr train`` and ``demo``: everything is checked before Ray is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Command

BAD_SETTINGS = [
    ("stages.vqgan.cropp=16", 2, "did you mean stages.vqgan.crop?"),
    ("stages.vqgan.crop=20", 2, "stages.vqgan.crop must be a multiple of 8 pixels"),
    ("stages.vqgan.l1=-1", 2, "stages.vqgan.l1 must be at least 0; it is -1"),
    ("run=[base]", 2, "run has base without vqgan before it"),
    ("data.path=", 2, "data.path"),
    ("data.path=''", 2, "data.path"),
    ("stages.vqgan.crop=72", 1, "72"),
    ("stages.base.crop=72", 1, "72"),
    ("stages.base.lpips=1", 1, "weights.vgg16"),
    ("data.path=/no/such/folder", 1, "/no/such/folder: no packed dataset"),
]


@pytest.mark.parametrize(
    ("override", "code", "told"), BAD_SETTINGS, ids=[s[0] for s in BAD_SETTINGS]
)
def test_bad_experiments_are_told_before_anything_starts(
    override: str,
    code: int,
    told: str,
    experiment: Path,
    qdmr: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = experiment.parent / "runs"
    monkeypatch.setenv("TORCH_HOME", str(runs))  # where VGG's weights are not

    outcome = qdmr("train", experiment, "--storage", runs, "--set", override)

    assert outcome.code == code
    assert told in outcome.line
    assert not runs.exists()


def test_a_crop_that_is_too_large_names_the_photograph(experiment: Path, qdmr: Command) -> None:
    told = qdmr(
        "train", experiment, "--storage", experiment.parent, "--set", "stages.vqgan.crop=72"
    )
    assert told.code == 1
    assert "96x64" in told.line.replace(" ", "")
    assert ".png" in told.line


def test_the_semantic_term_of_another_network_is_refused_before_a_worker_starts(
    experiment: Path, qdmr: Command
) -> None:
    overrides = ("--set", "stages.vqgan.semantic=0.1")
    told = qdmr("train", experiment, "--storage", experiment.parent / "runs", *overrides)
    assert told.code == 2
    assert "stages.vqgan.semantic needs four network.widths" in told.line
    assert "there are 2: set stages.vqgan.semantic=0" in told.line
    assert not (experiment.parent / "runs").exists()


def test_the_semantic_term_without_weights_says_how_to_get_them(
    experiment: Path, qdmr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(experiment.parent / "torch"))
    words = ("network.widths=[8,8,8,16]", "network.swin.window=2", "stages.vqgan.semantic=0.1")
    overrides = [part for word in words for part in ("--set", word)]
    told = qdmr("train", experiment, "--storage", experiment.parent / "runs", *overrides)
    assert told.code == 1
    for part in ("vgg19-dcbb9e9d.pth", "weights.vgg19", "torchvision", "semantic=0"):
        assert part in told.line
    assert not (experiment.parent / "runs").exists()


def test_stages_that_cannot_be_trained(experiment: Path, qdmr: Command) -> None:
    runs = experiment.parent / "runs"
    unknown = qdmr("train", experiment, "--storage", runs, "--stage", "uda")
    assert (unknown.code, "vqgan, base" in unknown.line) == (2, True)
    early = qdmr("train", experiment, "--storage", runs, "--stage", "base")
    assert (early.code, "vqgan is not trained yet" in early.line) == (1, True)
    missing = qdmr("train", experiment.with_name("none.yaml"), "--storage", runs)
    assert (missing.code, "no such file" in missing.line) == (1, True)
    assert not runs.exists()


def test_data_that_is_not_packed(realab: Path, experiment: Path, qdmr: Command) -> None:
    """The folder of photographs itself, where the packed dataset was meant."""
    for command in (
        ("train", experiment, "--storage", realab.parent / "runs", "--set", f"data.path={realab}"),
        ("data", "inspect", realab),
    ):
        told = qdmr(*command)
        assert told.code == 1
        assert told.line.startswith(f"qdmr: {realab}: no packed dataset")
        assert "qdmr data pack" in told.line
    assert not (realab.parent / "runs").exists()


def test_a_settings_error_of_the_demo_comes_at_once(tmp_path: Path, qdmr: Command) -> None:
    told = qdmr("demo", "--out", tmp_path / "demo", "--set", "stages.uda.iteration=3")
    assert told.code == 2
    assert "did you mean stages.uda.iterations?" in told.line
    assert not (tmp_path / "demo").exists()
