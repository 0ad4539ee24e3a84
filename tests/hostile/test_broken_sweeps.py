"""One broken part of a sweep folder doesn't end its page."""

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile.limits import outcome, refused
from report.sweeps import ablation, search, two_objectives, write

from qdmr_ray.report import build_report
from qdmr_ray.report.sweep import charts, page, parameters, summary, tables, trials

Change = Callable[[dict[str, Any]], object]
SURROGATE = "trial\ud800"
HUGE = 2**63 - 1


def of_trial(number: int, /, **values: Any) -> Change:
    return lambda content: content["trials"][number].update(values)


def of_settings(**values: Any) -> Change:
    return lambda content: [trial["settings"].update(values) for trial in content["trials"]]


def of_space(spec: Any) -> Change:
    return lambda content: content["space"].update({"stages.uda.gan": spec})


def of_sweep(**values: Any) -> Change:
    return lambda content: content.update(values)


SEARCHES: dict[str, Change] = {
    "a lone surrogate as name": of_sweep(name=SURROGATE),
    "a name of 5000 letters": of_sweep(name="n" * 5000),
    "a trial called by a lone surrogate": of_trial(0, id=SURROGATE, name=SURROGATE),
    "a trial that leads out": of_trial(2, id="../../../private"),
    "a trial with a null byte": of_trial(2, id="a\0b"),
    "two trials of one id": of_trial(1, id="0002"),
    "trials of one number": lambda c: [t.update(number=0) for t in c["trials"]],
    "a number of 2 ** 63": of_trial(1, number=HUGE),
    "a seed of 2 ** 63": of_trial(1, seed=HUGE),
    "a time of 1e308": of_trial(1, seconds=1e308),
    "times that are too long together": lambda c: [t.update(seconds=1e308) for t in c["trials"]],
    "a time that is none": of_trial(1, seconds=float("nan")),
    "an endless time": of_sweep(seconds=float("inf")),
    "a negative time": of_sweep(seconds=-5.0),
    "iterations of 2 ** 63": of_trial(1, progress={"uda": HUGE}),
    "an unknown state": of_trial(1, state="[/x]\x1b"),
    "values of 1e308": lambda c: [
        t.update(values=[(-1) ** i * 1e308]) for i, t in enumerate(c["trials"])
    ],
    "a history that goes back": lambda c: c["trials"][2]["history"].reverse(),
    "a history of 1e308": of_trial(
        2, history=[{"iteration": i, "values": [v]} for i, v in enumerate([-1e308, 1e308])]
    ),
    "a history of 2 ** 63": of_trial(2, history=[{"iteration": HUGE, "values": [1.0]}]),
    "a negative iteration": of_trial(2, history=[{"iteration": -(10**9), "values": [1.0]}]),
    "settings of lists and mappings": of_settings(**{"stages.uda.gan": [{"a": [1]}]}),
    "settings that are none": of_settings(**{"stages.uda.gan": None}),
    "settings of texts among numbers": lambda c: c["trials"][0]["settings"].update(
        {"stages.uda.gan": "low"}
    ),
    "settings of 2 ** 63": of_settings(**{"network.codebook_size": HUGE}),
    "settings of 1e308": lambda c: [
        t["settings"].update({"stages.uda.gan": (-1) ** i * 1e308})
        for i, t in enumerate(c["trials"])
    ],
    "a setting that is no number": of_settings(**{"stages.uda.gan": float("nan")}),
    "a setting called by a lone surrogate": of_settings(**{SURROGATE: 1.0}),
    "a setting without a name": of_settings(**{"": 1.0}),
    "zero on a logarithmic axis": of_settings(**{"stages.uda.gan": 0.0}),
    "a logarithmic range from below zero": of_space({"float": [-1.0, 1.0], "log": True}),
    "a range of texts": of_space({"float": ["a", "b"], "log": True}),
    "a range without end": of_space({"float": [0.1]}),
    "a range of nothing": of_space({"int": []}),
    "a range of 2 ** 63": of_space({"int": [0, HUGE]}),
    "a range upside down": of_space({"float": [1.0, 0.001], "log": True}),
    "a choice of mappings": of_space({"choice": [{"a": 1}, [2], None]}),
    "a choice of nothing": of_space({"choice": []}),
    "a condition that is a list": of_space({"float": [0.0, 1.0], "when": [1]}),
    "no way to search": of_space({}),
    "importances beyond one": of_sweep(importances={"stages.uda.gan": 1e308, "other": -1e308}),
    "an importance that is none": of_sweep(importances={"stages.uda.gan": float("nan")}),
    "repeats without means": lambda c: c["repeats"][0].update(mean=[], std=[]),
    "repeats of nobody": lambda c: c["repeats"][0].update(of="9999"),
    "repeats with more seeds than values": lambda c: c["repeats"][0].update(values=[[1.0]]),
    "repeats with empty values": lambda c: c["repeats"][0].update(values=[[], None, []]),
    "repeats of seeds of 2 ** 63": lambda c: c["repeats"][0].update(seeds=[HUGE, 1, 2]),
    "unseen metrics of a lone surrogate": lambda c: c["test"]["input"].update({SURROGATE: 1.0}),
    "unseen metrics of nobody": lambda c: c["test"].update(trials={"9999": {"psnr": 1.0}}),
    "unseen metrics of 1e308": lambda c: c["test"]["trials"]["0002"].update(psnr=1e308),
    "no unseen image": lambda c: c["test"].update(images=0, input={}, trials={}),
    "a front of strangers": of_sweep(front=["9999", "0002", "0002"]),
    "the best is a stranger": of_sweep(best="9999", baseline="9998"),
    "stages trained less than never": of_sweep(stages_trained={"uda": -5}),
    "a rule of 2 ** 63": of_sweep(stopping={"rule": "asha", "grace": HUGE, "reduction": 1e308}),
    "no trial": of_sweep(trials=[], best=None, front=[]),
    "an error of 100,000 letters": of_trial(3, error="<script>" * 12_500),
}


ABLATIONS: dict[str, Change] = {
    "variants of one name": lambda c: [t.update(name="full") for t in c["trials"]],
    "variants without a name": lambda c: [t.update(name=None) for t in c["trials"]],
    "a variant called by a lone surrogate": of_trial(0, name=SURROGATE),
    "values of 1e308": lambda c: [t.update(values=[1e308]) for t in c["trials"]],
    "times that are too long together": lambda c: [t.update(seconds=1e308) for t in c["trials"]],
    "numbers of 2 ** 63": lambda c: [t.update(number=HUGE) for t in c["trials"]],
    "two metrics of one name": lambda c: c["metrics"].append(c["metrics"][0]),
    "metrics of 5000 letters": of_sweep(metrics=[{"name": "m" * 5000, "mode": "[/x]"}]),
}
CASES = [(search, change) for change in SEARCHES.values()]
CASES += [(ablation, change) for change in ABLATIONS.values()]


def page_of(folder: Path, content: dict[str, Any]) -> str:
    return Path(build_report(write(folder, content))).read_text(encoding="utf-8")


def shown(folder: Path, content: dict[str, Any]) -> list[str]:
    """What is missing of the trials that the page should show."""
    page = page_of(folder, content)
    known = {trial["id"].encode(errors="replace").decode() for trial in content["trials"]}
    told = {html.unescape(found) for found in re.findall(r'data-trial="([^"]*)"', page)}
    return sorted(known - told)


@pytest.mark.parametrize(
    ("make", "change"), CASES, ids=[*SEARCHES, *(f"an ablation: {name}" for name in ABLATIONS)]
)
def test_a_strange_sweep_leaves_a_page_with_every_trial(
    make: Callable[[], dict[str, Any]], change: Change, tmp_path: Path
) -> None:
    content = make()
    change(content)
    found = outcome(lambda: shown(tmp_path, content), seconds=30)
    assert found.value == [], found


FILES: dict[str, tuple[str, bytes]] = {
    "settings of no UTF-8": ("best.yaml", b"name: \xff\xfe\n"),
    "settings with terminal codes": ("best.yaml", b"name: \x1b[2J</script>\n"),
    "an evaluation a thousand levels deep": (
        "trials/0002/evaluation.json",
        b'{"a":' * 100_000,
    ),
    "an evaluation of a list": ("trials/0002/evaluation.json", b"[]"),
    "an evaluation without photographs": (
        "trials/0002/evaluation.json",
        b'{"images": 0, "input": {}, "stages": {"uda": {}}, "per_image": []}',
    ),
}


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES.keys())
def test_a_strange_file_leaves_a_page_with_every_trial(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    found = outcome(lambda: shown(tmp_path, search()), seconds=30)
    assert found.value == [], found


UNREADABLE = {
    "a number of 400 digits": b'{"metrics": [{"name": "a"}], "seconds": 1%s}' % (b"0" * 400),
    "a thousand levels": b'{"metrics":' * 100_000,
    "no mapping": b"[]",
    "no metric": b'{"metrics": []}',
    "a trial that is a text": b'{"metrics": [{"name": "a"}], "trials": ["a"]}',
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_sweep_that_is_none_is_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_bytes(content)
    refused(lambda: build_report(tmp_path), match=r"sweep\.json")


PARTS = {
    "headline": summary,
    "facts": summary,
    "tiles": summary,
    "unseen_table": tables,
    "unseen_caption": tables,
    "seed_table": tables,
    "variant_table": tables,
    "space_table": tables,
    "draw_history": charts,
    "draw_learning_curves": charts,
    "draw_front": charts,
    "draw_variants": charts,
    "draw_slices": parameters,
    "draw_parallel": parameters,
    "draw_importances": parameters,
    "trial_table": trials,
    "compared_photographs": page,
}


@pytest.mark.parametrize("make", [search, two_objectives, ablation])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_cannot_be_made_is_named_beside_the_others(
    part: str,
    make: Callable[[], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def broken(*_: Any) -> None:
        asked.append(part)
        raise ZeroDivisionError("out of range")

    monkeypatch.setattr(PARTS[part], part, broken)
    text = page_of(tmp_path, make())
    assert ("cannot be shown (ZeroDivisionError: out of range)" in text) == bool(asked)
    assert asked or make is not two_objectives or part == "draw_variants"
    assert "Settings of the best trial" in text
