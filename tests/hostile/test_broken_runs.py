"""One broken part of a run folder doesn't end its page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile.limits import outcome

from qdmr_ray.report import build_report

Change = Callable[[dict[str, Any]], object]
SURROGATE = "photo\ud800"


def rename(name: str) -> Change:
    return lambda content: content["per_image"][0].update(name=name)


EVALUATIONS: dict[str, Change] = {
    "a lone surrogate as name": rename(SURROGATE),
    "a name of 5000 letters": rename("n" * 5000),
    "a null byte in a name": rename("a\0b"),
    "a name that leads out": rename("../../private"),
    "a metric called by a lone surrogate": lambda c: c["input"].update({SURROGATE: 1.0}),
    "a stage called by a lone surrogate": lambda c: c["stages"].update({SURROGATE: {"psnr": 1.0}}),
    "a failure with a lone surrogate": lambda c: c.update(
        failed=[{"name": SURROGATE, "reason": "\udcff"}]
    ),
    "two photographs of one name": lambda c: c["per_image"].append(c["per_image"][0]),
    "metrics of 1e308": lambda c: c["per_image"][0].update(uda={"psnr": 1e308, "ssim": -1e308}),
    "no metric": lambda c: c.update(input={}, stages={"uda": {}}, per_image=[]),
    "a photograph without values": lambda c: c.update(per_image=[{"name": "astronaut"}]),
    "values of another stage": lambda c: c["per_image"][0].update(other={"psnr": 3.0}),
}
METRICS = "uda/metrics.jsonl"


def codebook(source: list[int], target: list[int]) -> bytes:
    counts = {"source": source, "target": target}
    sets = {name: {"photographs": 1, "crops": 1, "counts": row} for name, row in counts.items()}
    more = {"crop": 1, "own_share": 0.9, "weights_sha256": "a", "data_digest": "b"}
    return json.dumps(sets | more).encode()


def lines(*values: dict[str, float]) -> bytes:
    return b"".join(
        json.dumps({"iteration": i, **v}).encode() + b"\n" for i, v in enumerate(values)
    )


FILES: dict[str, tuple[str, bytes]] = {
    "an iteration of 400 digits": (METRICS, b'{"iteration": 1%s, "a": 1}' % (b"0" * 400)),
    "a value of 400 digits": (METRICS, b'{"iteration": 1, "a": 1%s}' % (b"0" * 400)),
    "times far apart": (METRICS, lines({"time": -1e308, "a": 1}, {"time": 1e308, "a": 1})),
    "values of 1e308": (METRICS, lines({"source/l1": 1e308}, {"source/l1": -1e308})),
    "a negative iteration": (METRICS, b'{"iteration": -5, "a": 1}'),
    "a term called by a lone surrogate": (METRICS, lines({SURROGATE: 1})),
    "notes a thousand levels deep": ("notes.json", b"[" * 100_000),
    "a note with a lone surrogate": ("notes.json", b'["\\ud800 \\udcff"]'),
    "an environment with a lone surrogate": ("environment.json", b'{"torch": "\\ud800"}'),
    "an evaluation a thousand levels deep": ("evaluation.json", b'{"a":' * 100_000),
    "a codebook of no counts": ("codebook.json", codebook([], [])),
    "a codebook of unlike counts": ("codebook.json", codebook([1], [1, 2])),
    "a codebook of negative counts": ("codebook.json", codebook([-1, 1], [0, 0])),
    "a picture that is none": ("uda/pictures/codebook_atlas.png", b"\x89PNG\r\n"),
}


def shown(run: Path) -> bool:
    page = Path(build_report(run)).read_text(encoding="utf-8")
    return "UDA" in page and "iterations: 40" in page


@pytest.mark.parametrize("change", EVALUATIONS.values(), ids=EVALUATIONS.keys())
def test_a_strange_evaluation_leaves_a_page(make_run, tmp_path: Path, change: Change) -> None:
    run = make_run(tmp_path / "run")
    content = json.loads((run / "evaluation.json").read_text())
    change(content)
    (run / "evaluation.json").write_text(json.dumps(content))
    found = outcome(lambda: shown(run), seconds=30)
    assert found.value, found


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES.keys())
def test_a_strange_file_leaves_a_page(make_run, tmp_path: Path, name: str, content: bytes) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_bytes(content)
    found = outcome(lambda: shown(run), seconds=30)
    assert found.value, found
