"""``qdmr restore`` with everything that users may hand it: one line each, the others still done."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress, TaskID

from qdmr_ray.cli import main as cli
from qdmr_ray.cli.restore_display import Bar, Lines
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR, VQGAN, NetworkSettings, SwinSettings
from qdmr_ray.photographs.files import Photograph
from qdmr_ray.restore import files as restoring
from qdmr_ray.restore.inputs import Failure
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
    picture(1, 17_000, 3).save(tmp_path / "wide.webp", format="PNG")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    good = ["point.png", "wide.png", "good.jpg"]
    bad = ["print.jpg", "moving.gif", "text.png", "missing.png", "empty", "none-*.png"]
    bad += ["wide.webp", "n" * 300 + ".png"]
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


def test_a_forbidden_file_does_not_stop_the_others(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Forbidden by hand, as root may run this."""
    for name in ("locked", "open"):
        picture(5, 6, 3).save(tmp_path / f"{name}.png")
    locked, access, opened = tmp_path / "locked.png", os.access, os.open

    def forbidden(path: Any, *flags: Any, **options: Any) -> int:
        if path == locked:
            raise PermissionError(13, "Permission denied")
        return opened(path, *flags, **options)

    monkeypatch.setattr(os, "access", lambda p, *a: str(p) != str(locked) and access(p, *a))
    monkeypatch.setattr(os, "open", forbidden)
    out = tmp_path / "out"
    arguments = (locked, tmp_path / "open.png", "--checkpoint", models / "uda", "--out", out)
    assert restore(monkeypatch, *arguments) == 1
    assert [path.name for path in out.iterdir()] == ["open.png"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"qdmr: {locked}: cannot be read (Permission denied); check the path"
    assert lines[1:] == [f"restored {tmp_path / 'open.png'} as {out / 'open.png'} (2 of 2)"]


def test_a_bar_with_the_photographs_name_where_a_person_watches(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From its first moment, and within the photograph."""
    picture(5, 6, 3).save(tmp_path / "a[b].png")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    moved = []
    bar = Progress.update

    def update(progress: Progress, task: TaskID, **changes: Any) -> None:
        bar(progress, task, **changes)
        moved.append(progress.tasks[0].completed)

    monkeypatch.setattr(Progress, "update", update)
    arguments = ("--checkpoint", models / "uda", "--out", tmp_path / "out")
    assert restore(monkeypatch, tmp_path / "a[b].png", tmp_path / "gone.png", *arguments) == 1
    shown = capsys.readouterr().err
    assert "restore a[b].png (1 of 2)" in shown
    assert f"qdmr: {tmp_path / 'gone.png'}: cannot be read" in shown
    assert moved[0] == 0
    assert any(0 < share < 0.5 for share in moved)
    assert moved[-1] == 2


def test_an_end_is_told_with_its_own_number_after_the_next_has_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And doesn't move the bar, which is with the next one."""
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    with Progress(disable=True) as progress:
        for report in (Lines(), Bar(progress)):
            report.begun(paths[0], 1, 3)
            report.begun(paths[1], 2, 3)
            report.advanced(0.25)
            report.restored(paths[0], tmp_path / "out" / "a.png", [])
            report.begun(paths[2], 3, 3)
            report.advanced(0.5)
            report.failed(Failure(path=paths[1], reason="broken"))
            assert report.so_far(tmp_path).startswith("1 of 3 photographs")
        assert progress.tasks[0].completed == 2.5
        report.restored(paths[2], tmp_path / "out" / "c.png", [])
        assert progress.tasks[0].completed == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"restored {paths[0]} as {tmp_path / 'out' / 'a.png'} (1 of 3)"
    assert lines[1:] == ["qdmr: broken"] * 2


def test_interrupted_it_says_what_is_true(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a", "b", "c"):
        picture(5, 6, 3).save(tmp_path / f"{name}.png")
    read = restoring.read_photograph

    def stopped(path: Path) -> Photograph:
        if path.stem == stop_at:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(restoring, "read_photograph", stopped)
    arguments = (tmp_path, "--checkpoint", models / "uda", "--out", tmp_path / "out")
    stop_at = "a"
    assert restore(monkeypatch, *arguments) == 130
    assert capsys.readouterr().err == "qdmr: interrupted; nothing is restored yet\n"
    assert not (tmp_path / "out").exists()
    stop_at = "b"
    assert restore(monkeypatch, *arguments) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"qdmr: interrupted; 1 of 3 photographs are restored, in {tmp_path}/out")
    assert "run the same command again to go on" not in line


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--memory", "inf", "--memory inf: give a number of GiB"),
        ("--device", "meta", "device meta can't be used: name cpu, cuda or cuda:N"),
        ("--device", "cuda:7", "device cuda:7 can't be used: PyTorch finds"),
    ],
)
@pytest.mark.parametrize("command", ["restore", "bench restore"])
def test_options_that_cannot_be(
    command: str,
    option: str,
    value: str,
    reason: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture(5, 6, 3).save(tmp_path / "a.png")
    arguments = ["qdmr", *command.split(), option, value]
    if command == "restore":
        arguments += [str(tmp_path), "--checkpoint", str(models / "uda"), "--out", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"qdmr: {reason}")
    assert said.count("\n") == 1
    assert not Path("out").exists()
