"""What is refused about a command before anything of it is uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qdmr_ray.cli.main import app
from qdmr_ray.errors import SettingsError


def submitted(tmp_path: Path, *words: str) -> Any:
    """`qdmr submit` of a command from an empty folder, to nobody."""
    options = ["--code", str(tmp_path), "--address", "http://127.0.0.1:9", "--no-check"]
    return CliRunner().invoke(app, ["submit", *options, "--", *words])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "x.yaml"), "qdmr train: --storage is runs by default and lies in"),
        (("train", "x.yaml", "--storage", "runs"), "qdmr train: --storage runs lies in"),
        (("train", "x.yaml", "--storage=./r"), "--storage ./r lies in"),
        (("-v", "train", "x.yaml", "--storage=~/r"), "--storage ~/r lies in"),
        (("train", "x.yaml", "--storage", "s3://b/r", "--store", "st"), "--store st lies in"),
        (("sweep", "s.yaml"), "qdmr sweep: --storage is runs/sweeps by default and lies in"),
        (("demo",), "qdmr demo: --out is runs/demo by default and lies in"),
        (("demo", "--out", "d"), "--out d lies in .*; name an absolute path on a disk"),
        # Which would become a folder of this name on a disk.
        (("demo", "--out", "s3://b/d"), "qdmr demo: --out s3:/b/d lies in"),
        (("evaluate", "runs/demo"), "qdmr evaluate: RUN runs/demo lies in"),
        (("evaluate", "s3://b/r", "--out", "o"), "qdmr evaluate: --out o lies in"),
        (("train", "x.yaml", "--strage", "s3://b/r"), "qdmr train: No such option: --strage"),
        (("train",), "qdmr train: Missing argument"),
    ],
)
def test_what_would_be_lost_is_refused_before_anything_else(
    tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    done = submitted(tmp_path, "qdmr", *words)
    # The command line ends with 2 for it, as for every wrong usage.
    with pytest.raises(SettingsError, match=told):
        raise done.exception
    assert "\n" not in str(done.exception)
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ("qdmr", "train", "x.yaml", "--storage", "s3://b/runs"),
        ("qdmr", "train", "x.yaml", "--storage", "/shared/runs", "--store", "s3://b/stages"),
        ("qdmr", "train", "x.yaml", "--storage", "file:///shared/runs"),
        ("qdmr", "sweep", "s.yaml", "--storage=/shared", "--set", "trials=2"),
        ("qdmr", "demo", "--out", "/shared/demo"),
        ("qdmr", "evaluate", "/shared/runs/demo"),
        ("qdmr", "evaluate", "s3://b/runs/demo", "--out", "s3://b/other"),
        # Others than these four are left alone.
        ("qdmr", "train", "--help"),
        ("qdmr", "report", "runs/demo"),
        ("qdmr", "stages", "list", "somewhere"),
        ("python", "train.py"),
        ("sh", "-c", "qdmr train x.yaml"),
    ],
)
def test_what_stays_goes_on_to_the_cluster(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = submitted(tmp_path, *words)
    assert "no Ray cluster answers there" in str(done.exception)
    assert done.stdout.startswith("0 files")
