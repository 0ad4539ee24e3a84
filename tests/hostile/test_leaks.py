"""Photographs that training was judged on stay out of the final metrics, wherever they lie."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.limits import refused

import qdmr_ray.evaluate.evaluate as evaluate_module
from qdmr_ray.config import dump_experiment, experiment_from_dict, stage_digest
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.evaluate.results import Evaluation, Judged
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import open_location

NAMES = [f"photo{number}" for number in range(10)]
VALIDATION = {"photo2", "photo7"}
Packed = Callable[..., str]


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    """``packed("a", {name: seed of its pixels})``: a dataset of these test photographs."""

    def make(folder: str, seeds: dict[str, int], paired: bool = True) -> str:
        root = tmp_path / folder
        for kind, first in (("image", 0), ("truth", 100))[: 1 + paired]:
            for name, seed in seeds.items():
                pixels = np.random.default_rng(first + seed).integers(0, 256, (16, 24, 3), np.uint8)
                (root / kind).mkdir(parents=True, exist_ok=True)
                write_png(root / kind / f"{name}.png", pixels)
        truth = {"test_ground_truth": "truth"} if paired else {}
        pack(root, str(root / "packed"), settings=PackSettings(test_images="image", **truth))
        return str(root / "packed")

    return make


@pytest.fixture
def run(packed: Packed, tmp_path: Path, tiny_network: Any) -> Path:
    """A run that was judged on photo2 and photo7 of its own dataset."""
    data = packed("own", {name: number for number, name in enumerate(NAMES)})
    experiment = experiment_from_dict(
        {
            "name": "run",
            "data": {"path": data},
            "network": experiment_from_dict({}).to_dict()["network"]
            | {"widths": [8, 16], "residual_blocks": 1, "codebook_size": 16, "code_dim": 8}
            | {"swin": {"groups": 1, "blocks": 2, "heads": 2, "window": 4, "mlp_ratio": 2.0}},
            "evaluation": {"validation_names": sorted(VALIDATION), "sheets": False},
        }
    )
    digest = stage_digest(experiment, "base", read_manifest(open_location(data)).digest)
    folder = tmp_path / "run"
    final = open_location(folder / "base" / "final")
    save_model(final, QDMR(tiny_network), kind="qdmr_base", step=1, digest=digest)
    (folder / "config.yaml").write_text(dump_experiment(experiment))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs are judged without Ray, and without a network."""

    def judge(task: Any, rows: Sequence[dict[str, Any]], spread: Any) -> Iterator[dict[str, Any]]:
        values = {"input": {"psnr": 20.0}, "base": {"psnr": 21.0}}
        for row in rows:
            judged = Judged(index=row["index"], name=row["name"], values=values)
            yield {**row, "judged": judged.to_json(indent=None), "failure": ""}

    monkeypatch.setattr(evaluate_module, "_judged", judge)
    monkeypatch.setattr(evaluate_module, "ensure_ray", lambda _: None)
    monkeypatch.setattr(evaluate_module.ray, "nodes", list)


def judged(run: Path, data: str | None, *overrides: str) -> Evaluation:
    out = str(run.parent / "out")
    return evaluate_run(open_location(run), data=data, out=out, overrides=overrides, codebook=False)


def names(evaluation: Evaluation) -> set[str]:
    return {photograph.name for photograph in evaluation.per_image}


REST = {name: number for number, name in enumerate(NAMES) if name not in VALIDATION}
# Names and seeds of a dataset's photographs, and which of the names are judged.
ALL = {name: number for number, name in enumerate(NAMES)}
TWICE = [f"{name}-{copy}" for name in REST for copy in "ab"]
COPIES: dict[str, tuple[dict[str, int], set[str]]] = {
    "packed again": (ALL, {*REST}),
    "other names": ({f"a{9 - i}": i for i in range(10)}, {f"a{9 - i}" for i in REST.values()}),
    "a part of it": ({n: i for n, i in ALL.items() if i > 6}, {"photo8", "photo9"}),
    "twice": ({f"{n}-{i}": s for n, s in ALL.items() for i in "ab"}, {*TWICE}),
    "among others": ({"x": 50, "y": 2, "z": 7, "photo3": 51}, {"x", "photo3"}),
    "other photographs of their names": ({n: 60 + i for n, i in ALL.items()}, {*NAMES}),
}


@pytest.mark.parametrize("paired", [True, False], ids=["with truth", "without truth"])
@pytest.mark.parametrize(("seeds", "expected"), COPIES.values(), ids=COPIES.keys())
def test_a_copy_s_validation_photographs_are_left_out(
    run: Path, packed: Packed, seeds: dict[str, int], expected: set[str], paired: bool
) -> None:
    found = judged(run, packed("copy", seeds, paired))
    assert names(found) == expected
    assert len(found.provenance.validation_images) == len(seeds) - len(expected)


def test_a_copied_folder_gives_the_same_evaluation(run: Path, tmp_path: Path) -> None:
    own = judged(run, None)
    assert names(own) == {*REST}
    shutil.copytree(tmp_path / "own" / "packed", tmp_path / "copied")
    copied = judged(run, str(tmp_path / "copied"))
    # The dataset has moved: its content says that it is the one that the run was trained on.
    shutil.rmtree(tmp_path / "own")
    moved = judged(run, str(tmp_path / "copied"))
    assert own.provenance == copied.provenance == moved.provenance


def test_a_twin_of_a_validation_photograph_is_left_out_of_every_dataset(
    run: Path, packed: Packed, tmp_path: Path
) -> None:
    # Training was judged on the twin's pixels, too, whichever dataset holds them.
    twins = ALL | {"twin": ALL["photo2"], "double": ALL["photo3"]}
    shutil.rmtree(tmp_path / "own")
    packed("own", twins)
    expected = {*REST, "double"}
    assert names(judged(run, None)) == expected
    shutil.copytree(tmp_path / "own" / "packed", tmp_path / "copied")
    assert names(judged(run, str(tmp_path / "copied"))) == expected
    assert names(judged(run, packed("other", twins | {"more": 70}))) == expected | {"more"}


def test_where_all_are_twins_of_validation_photographs_none_is_left(
    run: Path, packed: Packed, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "own")
    packed("own", {"photo2": 2, "photo7": 7, "a": 2, "b": 7})
    refused(lambda: judged(run, None), match=r"only photographs .* judged on \(4 validation")


def test_what_cannot_be_told_is_refused(run: Path, packed: Packed, tmp_path: Path) -> None:
    other = packed("other", {"x": 50, "y": 51})
    assert names(judged(run, other)) == {"x", "y"}
    shutil.rmtree(tmp_path / "own")
    refused(lambda: judged(run, other), match=r"data\.path of the run, .*own.*validation_share=0")
    none = ("evaluation.validation_share=0", "evaluation.validation_names=[]")
    assert names(judged(run, other, *none)) == {"x", "y"}


def test_a_dataset_of_nothing_else_is_refused(run: Path, packed: Packed) -> None:
    copy = packed("copy", {"y": 2, "z": 7})
    refused(lambda: judged(run, copy), match=r"only photographs that .* judged on \(2 validation")
