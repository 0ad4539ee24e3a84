"""Fixtures of the tests of the ``qdmr`` command."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import yaml
from command_line import FOLDERS, Command, Outcome, noise

from qdmr_ray.cli import main as cli
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR, NetworkSettings
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import open_location


@pytest.fixture
def qdmr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """``qdmr("data", "pack", …)``: the command in this process; Ray must not be started."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["qdmr", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError("bad input must be told before Ray is started")

    monkeypatch.chdir(tmp_path)  # where a contact sheet goes
    monkeypatch.setenv("QDMR_VERBOSE", "")  # set by -v
    monkeypatch.setattr(ray, "init", no_ray)
    return run


@pytest.fixture
def realab(tmp_path: Path) -> Path:
    """Two photographs in each folder of the Realab layout."""
    root = tmp_path / "Realab"
    for seed, folder in enumerate(FOLDERS):
        (root / folder).mkdir(parents=True)
        for i in range(2):
            write_png(root / folder / f"{i}.png", noise(10 * seed + i))
    return root


@pytest.fixture
def model(tmp_path: Path, tiny_network: NetworkSettings) -> Path:
    """A restoration network that gives its input back: global_residual, not trained yet."""
    folder = tmp_path / "runs" / "tiny" / "base" / "final"
    network = QDMR(replace(tiny_network, global_residual=True))
    save_model(open_location(folder), network, kind="qdmr_base", step=1, digest="")
    return folder


@pytest.fixture
def experiment(tmp_path: Path, tiny_dataset: Path) -> Path:
    """A tiny experiment on the tiny dataset, that nothing stands in the way of."""
    stage = {"crop": 16, "iterations": 1, "lpips": 0}
    values = {
        "run": ["vqgan", "base"],
        "data": {"path": str(tiny_dataset)},
        "network": {
            "widths": [8, 16],
            "residual_blocks": 1,
            "swin": {"groups": 1, "blocks": 1, "heads": 2, "window": 4},
        },
        "discriminator": {"width": 4},
        "stages": {"vqgan": {**stage, "semantic": 0}, "base": stage},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with 64 kB of room: a real one where it may be mounted, else one that refuses."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    rename = os.replace

    def no_room(source: str | Path, destination: str | Path) -> None:
        if folder in Path(destination).parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, destination)

    monkeypatch.setattr(os, "replace", no_room)
    yield folder


@pytest.fixture
def large_realab(tmp_path: Path) -> Path:
    """Photographs that 64 kB can't hold, however they are stored."""
    root = tmp_path / "large"
    for seed, folder in enumerate(FOLDERS):
        (root / folder).mkdir(parents=True)
        write_png(root / folder / "0.png", noise(seed, 200, 200))
    return root
