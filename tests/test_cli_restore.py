"""``qdmr restore`` with everything that users may hand it: one line each, the others still done."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qdmr_ray import cli
from qdmr_ray.artifacts import save_model
from qdmr_ray.nets import QDMR, VQGAN, NetworkSettings, SwinSettings
from qdmr_ray.storage import open_location

SMALL = NetworkSettings(
    widths=(4, 4),
    residual_blocks=1,
    codebook_size=4,
    code_dim=4,
    swin=SwinSettings(groups=1, blocks=2, heads=2, window=4),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, kind, network in (
        ("uda", "qdmr_uda", QDMR(SMALL)),
        ("vqgan", "vqgan", VQGAN(SMALL)),
    ):
        save_model(open_location(str(folder / name)), network, kind=kind, step=1, digest="d")
    return folder


def restore(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    command = ["qdmr", "restore", *(str(argument) for argument in arguments)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def picture(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))


def test_bad_files_among_good_ones(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture(1, 1, 3).save(tmp_path / "point.png")
    picture(3, 100_000, 3).save(tmp_path / "wide.png")
    picture(20, 30, 3).save(tmp_path / "good.jpg")
    Image.fromarray(np.zeros((5, 6, 4), np.uint8), mode="CMYK").save(tmp_path / "print.jpg")
    frames = [picture(5, 6, 3), picture(5, 6, 3).rotate(180)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    good = ["point.png", "wide.png", "good.jpg"]
    bad = ["print.jpg", "moving.gif", "text.png", "missing.png", "empty", "none-*.png"]
    out = tmp_path / "out"
    named = [tmp_path / name for name in [*bad, *good]]
    ended = restore(monkeypatch, *named, "--checkpoint", models / "uda", "--out", out)
    assert ended == 1
    assert sorted(p.name for p in out.iterdir()) == sorted(good)
    with Image.open(out / "wide.png") as wide:
        assert wide.size == (100_000, 3)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qdmr: ")]
    assert len(lines) == len(bad)
    for name in bad:
        assert sum(f"{tmp_path / name}: " in line for line in lines) == 1, name


@pytest.mark.parametrize(
    ("checkpoint", "reason"),
    [("vqgan", "is a VQGAN, which restores nothing"), ("nothing", "no model.json there")],
)
def test_a_checkpoint_that_restores_nothing(
    checkpoint: str,
    reason: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture(5, 6, 3).save(tmp_path / "a.png")
    out = tmp_path / "out"
    arguments = (tmp_path / "a.png", "--checkpoint", models / checkpoint, "--out", out)
    assert restore(monkeypatch, *arguments) == 1
    assert reason in capsys.readouterr().err
    assert not out.exists()


def test_an_out_folder_that_cannot_be(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture(5, 6, 3).save(tmp_path / "a.png")
    (tmp_path / "file").write_text("in the way")
    arguments = (tmp_path / "a.png", "--checkpoint", models / "uda")
    assert restore(monkeypatch, *arguments, "--out", tmp_path / "file" / "out") == 1
    assert "cannot be made" in capsys.readouterr().err
    if os.geteuid() == 0:
        # Nothing is forbidden to root; a folder of the kernel's is.
        assert restore(monkeypatch, *arguments, "--out", "/proc/qdmr") == 1
        assert capsys.readouterr().err.count("\n") == 1
