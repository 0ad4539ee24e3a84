"""Thousands of damaged variants of results, which pages and comparisons read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hostile.damage import damaged_values, holds
from report.sweeps import search

from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.evaluate.sweep_file import SweepFile
from qdmr_ray.report import build_report


def plain(values: Any) -> str:
    return json.dumps(values, default=str)


def test_thousands_of_damaged_evaluations(make_run: Any, tmp_path: Path) -> None:
    whole = json.loads((make_run(tmp_path / "run") / "evaluation.json").read_text())

    def read(values: Any) -> None:
        written = Evaluation.parse(plain(values), "evaluation.json").to_json()
        assert Evaluation.parse(written, "again").to_json() == written

    holds(read, damaged_values(whole), examples=200)


def test_thousands_of_damaged_sweep_s_files() -> None:
    holds(
        lambda values: SweepFile.parse(plain(values), "sweep.json").to_json(),
        damaged_values(search()),
        examples=200,
    )


@pytest.mark.slow
def test_dozens_of_damaged_evaluations_leave_a_page(make_run: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    whole = json.loads((run / "evaluation.json").read_text())

    def show(values: Any) -> None:
        (run / "evaluation.json").write_text(plain(values))
        assert "UDA" in Path(build_report(run)).read_text(encoding="utf-8")

    holds(show, damaged_values(whole), examples=12)
