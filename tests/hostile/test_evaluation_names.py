"""Names in an evaluation: each photograph has its own folder, and nothing ends what is computed."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.datasets import forge, packed_noise
from hostile.limits import outcome, refused
from hypothesis import given
from hypothesis import strategies as st

import qdmr_ray.evaluate.evaluate as evaluate_module
from qdmr_ray.api import compare
from qdmr_ray.evaluate.compare_text import comparison_text
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.evaluate.metrics.pristine import GAUSSIAN_WINDOW, PristineModel, save_pristine
from qdmr_ray.evaluate.results import Evaluation, Judged
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR, NetworkSettings
from qdmr_ray.report import build_report
from qdmr_ray.storage import open_location
from qdmr_ray.storage.names import MOST_NAME_BYTES, check_name, unique_names

LONG = "x" * 255
NAMES: dict[str, tuple[list[str], list[str]]] = {
    "one name thrice": (["a", "b", "a", "a"], ["a", "b", "a (2)", "a (3)"]),
    "a number behind": (["a", "a", "a (2)"], ["a", "a (3)", "a (2)"]),
    "a number before": (["a (2)", "a", "a"], ["a (2)", "a", "a (3)"]),
    "numbers of numbers": (["a", "a (2)", "a (2)", "a"], ["a", "a (2)", "a (2) (2)", "a (3)"]),
    "a number to the fourth": (["a"] * 4 + ["a (3)"], ["a", "a (2)", "a (4)", "a (5)", "a (3)"]),
    "two cases": (["a", "A", "A"], ["a", "A (2)", "A (3)"]),
    "two cases of a number": (["A (2)", "a", "a"], ["A (2)", "a", "a (3)"]),
    "two cases of a sharp s": (["straße", "STRASSE"], ["straße", "STRASSE (2)"]),
    "two ways to write an accent": (["\xe9", "e\u0301"], ["\xe9", "e\u0301 (2)"]),
    "the journal's": (["results.jsonl", "Results.JSONL"], [f"{n} (2)" for n in ("results.jsonl",)]),
    "255 bytes": ([LONG, LONG], [LONG, f"{'x' * 251} (2)"]),
    "255 bytes of three each": (["\u20ac" * 85] * 2, ["\u20ac" * 85, "\u20ac" * 83 + " (2)"]),
    "cut to one that is there": (
        [f"{'x' * 251} (2)", LONG, LONG],
        [f"{'x' * 251} (2)", LONG, f"{'x' * 251} (3)"],
    ),
    "255 bytes of two ends": ([LONG, LONG, f"{'x' * 254}X"], [LONG, f"{'x' * 251} (2)", ""]),
}
NAMES["the journal's"][1].append("Results.JSONL (3)")
NAMES["255 bytes of two ends"][1][2] = f"{'x' * 251} (3)"


@pytest.mark.parametrize(("names", "expected"), NAMES.values(), ids=NAMES.keys())
def test_names_of_photographs_stay_apart(names: list[str], expected: list[str]) -> None:
    assert unique_names(names, ["results.jsonl"]) == expected


PARTS = st.sampled_from(["a", "A", "\xe9", "e\u0301", " (2)", " (3)", "x" * 200, "results.jsonl"])


SOME = st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: "".join(parts)[:255])


@given(st.lists(SOME, max_size=9))
def test_any_names_stay_apart(names: list[str]) -> None:
    names = [name for name in names if len(name.encode()) <= MOST_NAME_BYTES]
    found = unique_names(names, ["results.jsonl"])
    assert len({name.casefold() for name in found} | {"results.jsonl"}) == len(names) + 1
    assert all(check_name(name) for name in found)
    for position, name in enumerate(names):
        alone = name.casefold() not in {"results.jsonl", *map(str.casefold, names[:position])}
        if alone and not {"\xe9", "\u0301"} & set(name):
            assert found[position] == name


def test_a_million_of_one_name_take_a_moment() -> None:
    assert outcome(lambda: unique_names(["a"] * 300_000)[-1]).value == "a (300000)"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs are judged without Ray, and without a network."""

    def judge(task: Any, rows: Sequence[dict[str, Any]], spread: Any) -> Iterator[dict[str, Any]]:
        for row in rows:
            values = {"input": {"psnr": 2.0}, **{name: {"psnr": 3.0} for name in task.models}}
            for picture in ("input", "ground_truth", *task.models):
                place = open_location(task.out).join(row["name"], f"{picture}.png")
                place.write_bytes_atomic(b"")
            judged = Judged(index=row["index"], name=row["name"], values=values)
            yield {**row, "judged": judged.to_json(indent=None), "failure": ""}

    monkeypatch.setattr(evaluate_module, "_judged", judge)
    monkeypatch.setattr(evaluate_module, "ensure_ray", lambda _: None)
    monkeypatch.setattr(evaluate_module.ray, "nodes", list)


Evaluate = Callable[..., Evaluation]


@pytest.fixture
def evaluate(tmp_path: Path, tiny_network: NetworkSettings, quick: None) -> Evaluate:
    data = packed_noise(tmp_path, ["a", "b", "c"])

    def run(stage: str = "base", out: str = "out", *overrides: str) -> Evaluation:
        model = open_location(tmp_path / stage / "final")
        if not model.exists():
            save_model(model, QDMR(tiny_network), kind="qdmr_base", step=1, digest="d")
        return evaluate_run(
            model,
            data=str(data),
            out=str(tmp_path / out),
            overrides=["evaluation.sheets=false", *overrides],
            codebook=False,
        )

    return run


RECORDS = {
    "one name thrice": ("a", "a", "a"),
    "a number behind": ("a", "a", "a (2)"),
    "two cases": ("a", "A", "b"),
    "255 bytes": (LONG, LONG, f"{'x' * 251} (2)"),
    "the journal's": ("results.jsonl", "a", "b"),
}


@pytest.mark.parametrize("names", RECORDS.values(), ids=RECORDS.keys())
def test_each_photograph_has_a_folder_a_row_and_a_line(
    evaluate: Evaluate, tmp_path: Path, names: tuple[str, ...]
) -> None:
    for row, name in enumerate(names):
        forge(tmp_path / "packed", row=row, name=name)
    found = [row.name for row in evaluate().per_image]
    folder = tmp_path / "out" / "evaluation"
    lines = (folder / "results.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["name"] for line in lines] == found
    assert sorted(place.name for place in folder.iterdir()) == sorted([*found, "results.jsonl"])
    assert len({name.casefold() for name in found}) == 3
    assert compare([str(tmp_path / "out")]).images == 3


ROWS: dict[str, dict[str, Any]] = {
    "another name": {"name": "b (2)"},
    "a name that leads out": {"name": "../../x"},
    "a lone surrogate": {"name": "\ud800"},
    "an index of none": {"index": 99},
    "a negative index": {"index": -1},
    "an index of another": {"index": 0},
}


@pytest.mark.parametrize("change", ROWS.values(), ids=ROWS.keys())
def test_a_line_of_the_journal_that_is_of_no_photograph_is_dropped(
    evaluate: Evaluate, tmp_path: Path, change: dict[str, Any]
) -> None:
    before = evaluate()
    journal = tmp_path / "out" / "evaluation" / "results.jsonl"
    head, *lines = journal.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    journal.write_text("\n".join([head, *lines]))
    found = outcome(lambda: evaluate().to_dict())
    assert found.value == before.to_dict(), found


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        (os.fsdecode(b"\xe9t\xe9"), "is not UTF-8"),
        ("a\nb", "control characters"),
        ("a\x1b[31m", "control characters"),
        ("input", "'input' is the name of other results"),
        ("Ground_Truth", "is the name of other results"),
        ("comparison", "is the name of other results"),
        ("name", "is the name of other results"),
        ("x" * 252, "is a name of more than 255 bytes"),
    ],
    ids=["Latin-1", "a line break", "an escape", "input", "truth", "comparison", "name", "long"],
)
def test_a_model_whose_folder_can_t_name_its_results_is_refused_first(
    evaluate: Evaluate, tmp_path: Path, folder: str, reason: str
) -> None:
    refused(lambda: evaluate(folder), match=rf"final: the model's results would be .*{reason}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["\xe9t\xe9", "a b", "x" * 251, "-", "inputs"])
def test_other_folders_name_a_model(evaluate: Evaluate, folder: str) -> None:
    assert list(evaluate(folder).stages) == [folder]


def test_a_folder_that_is_not_utf_8_is_evaluated_compared_and_shown(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    folders = [os.fsdecode(b"Andr\xe9"), os.fsdecode(b"Ren\xe9")]
    pristine = tmp_path / os.fsdecode(b"\xe9.npz")
    save_pristine(pristine, PristineModel(np.zeros(36), np.eye(36), GAUSSIAN_WINDOW, "nowhere"))

    def shown() -> tuple[str, str]:
        for out in folders:
            evaluate("base", out, f'evaluation.niqe="{tmp_path}/\\udce9.npz"')
        table = comparison_text(compare([str(tmp_path / out) for out in folders]))
        return table, Path(build_report(tmp_path / folders[0])).read_text(encoding="utf-8")

    found = outcome(shown, seconds=30)
    assert found.value, found
    table, page = found.value
    assert "Andr\\udce9/base" in table
    assert table.isascii()
    assert "nowhere" in page
    written = json.loads((tmp_path / folders[0] / "evaluation.json").read_bytes())
    assert written["niqe_parameters"].startswith("\udce9.npz, sha256")
