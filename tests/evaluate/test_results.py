"""evaluation.json and the journal: one definition for writer and reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.journal import ResultsFile
from qdmr_ray.evaluate.results import Evaluation, Judged, Provenance
from qdmr_ray.evaluate.statistics import summarize
from qdmr_ray.storage import open_location

# As version 0.1.0 wrote it on 2026-11-28, with two photographs of the six.
OLD: dict[str, Any] = {
    "images": 2,
    "input": {"psnr": 22.14, "niqe": 5.25},
    "stages": {"uda": {"psnr": 24.9, "niqe": 4.5}},
    "statistics": {
        "input": {"psnr": {"mean": 22.14, "median": 22.14, "ci95": [21.5, 22.75], "n": 2}},
        "uda": {"psnr": {"mean": 24.9, "median": 24.9, "ci95": None, "n": 1}},
    },
    "failed": [{"name": "moon_0", "reason": "wrong checksum"}],
    "left_out": [{"name": "astronaut_1", "metric": "psnr", "reason": "identical"}],
    "provenance": {
        "test_set": "c58a",
        "models": {"uda": "73c7"},
        "border": 4,
        "luma": False,
        "lpips": False,
        "niqe_parameters": "own.npz, sha256 12",
        "code_version": "0.1.0",
        "digest": "f7e4",
    },
    "environment": {"torch": "2.14.1", "device": "CPU", "dtype": "float32"},
    "niqe_parameters": "own.npz, sha256 12",
    "per_image": [
        {"name": "astronaut_0", "input": {"psnr": 22.75}, "uda": {"psnr": 25.57}},
        {"name": "astronaut_1", "input": {"psnr": 21.53}, "uda": {"psnr": None}},
    ],
}


def test_evaluations_of_before_are_read() -> None:
    found = Evaluation.from_dict(OLD, "evaluation.json")
    assert found.means == {"input": OLD["input"], "uda": {"psnr": 24.9, "niqe": 4.5}}
    assert found.statistics["input"]["psnr"].ci95 == (21.5, 22.75)
    assert found.failed[0].reason == "wrong checksum"
    assert found.provenance.border == 4
    assert found.reference("niqe") == "own.npz, sha256 12"
    assert found.reference("lpips") == found.reference("psnr") == ""
    assert [row.name for row in found.per_image] == ["astronaut_0", "astronaut_1"]
    assert found.per_image[1].values == {"input": {"psnr": 21.53}, "uda": {"psnr": None}}


def test_least_that_an_evaluation_holds() -> None:
    """INTERFACES.md fixes these keys."""
    least = {key: OLD[key] for key in ("images", "input", "stages", "per_image")}
    found = Evaluation.from_dict(least, "evaluation.json")
    assert found.left_out == ()
    assert {key: found.to_dict()[key] for key in least} == least
    for key in least:
        with pytest.raises(QdmrError, match=rf"a\.json: {key}: field required"):
            Evaluation.from_dict({k: v for k, v in least.items() if k != key}, "a.json")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = open_location(tmp_path / "evaluation.json")
    rows = [
        Judged(
            index=number,
            name=name,
            values={"input": {"psnr": psnr}, "uda": {"psnr": psnr and psnr + 1}},
            left_out={"niqe": "too small"},
            environment={"device": device},
        )
        for number, (name, psnr, device) in enumerate(
            [("a", 20.0, "CPU"), ("b", None, "GPU"), ("c", 24.5, "CPU")]
        )
    ]
    provenance = Provenance(test_set="t", models={"uda": "m"}, niqe_parameters="own.npz")
    written = summarize(rows, ["uda"], provenance=provenance)
    written.write(file)
    assert Evaluation.read(file) == written
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored == written.to_dict()
    assert stored["format"] == 1
    assert stored["niqe_parameters"] == stored["provenance"]["niqe_parameters"] == "own.npz"
    assert stored["per_image"][1] == {"name": "b", "input": {"psnr": None}, "uda": {"psnr": None}}
    assert stored["environment"]["device"] == "CPU, GPU"
    assert [(row["name"], row["metric"]) for row in stored["left_out"]] == [
        ("a", "niqe"),
        ("b", "niqe"),
        ("b", "psnr"),
        ("c", "niqe"),
    ]
    assert stored["left_out"][2]["reason"].endswith("identical, PSNR is infinite")


def test_a_journal_goes_on_and_drops_broken_lines(tmp_path: Path) -> None:
    file = open_location(tmp_path / "results.jsonl")
    journal = ResultsFile(file, "digest")
    journal.flush()
    rows = [Judged(index=i, name=f"photo{i}", values={"input": {"psnr": 20.0}}) for i in range(3)]
    for row in rows:
        journal.add(row)
    text = (tmp_path / "results.jsonl").read_text()
    assert len(text.splitlines()) == 4
    # The last line is cut short, and one holds another program's words.
    (tmp_path / "results.jsonl").write_text(text.replace('"index": 1', '"index": "?"')[:-20])
    assert ResultsFile(file, "digest").rows == {0: rows[0]}
    assert ResultsFile(file, "another").rows == {}
    (tmp_path / "results.jsonl").write_text("[]\n")
    assert ResultsFile(file, "digest").rows == {}
