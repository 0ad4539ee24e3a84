"""What the report says about complete, unfinished, damaged and hostile sweeps."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from report_page import Page
from sweeps import LPIPS, PSNR, SPACE, ablation, search, sweep, trial, two_objectives, write

from qdmr_ray.errors import QdmrError
from qdmr_ray.report import build_report
from qdmr_ray.report.charts import Chart
from qdmr_ray.report.sweep.charts import (
    SYMBOLS,
    draw_front,
    draw_history,
    draw_learning_curves,
    draw_variants,
    running_best,
)
from qdmr_ray.report.sweep.data import MISSING, Sweep, short_names
from qdmr_ray.report.sweep.folder import read_sweep
from qdmr_ray.report.sweep.parameters import (
    SHADES,
    draw_importances,
    draw_parallel,
    draw_slices,
    jittered,
    shade,
)
from qdmr_ray.report.sweep.scales import NOT_USED, metric_scale, parameter_scale
from qdmr_ray.storage import Location, open_location

LOG = {"float": [0.001, 0.1], "log": True}
CONDITIONAL = "stages.uda.target_feature"


def report(folder: Path, content: Any) -> Page:
    return Page(Path(build_report(write(folder, content))))


def read(folder: Path, content: Any) -> Sweep:
    return read_sweep(open_location(write(folder, content)))


def traces(chart: Chart | None) -> dict[str, dict[str, Any]]:
    """The traces by name (of lines that share one, by trial); all numbers must be standard JSON."""
    assert chart is not None
    data = json.loads(json.dumps(chart.data, allow_nan=False))["data"]
    return {trace.get("meta") or trace.get("name") or str(n): trace for n, trace in enumerate(data)}


def marks(chart: Chart | None) -> dict[str, tuple[float, float]]:
    """Where the sign of each trial stands."""
    return {
        trial: (x, y)
        for trace in traces(chart).values()
        if "customdata" in trace
        for trial, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
    }


def ids(page: Page) -> set[str | None]:
    return {attributes.get("id") for _, attributes in page.tags if "id" in attributes}


# ---------------------------------------------------------------- the page


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"state": "running"}, "running; 2 of 16 trials have ended at 2026-11-28 22:10 UTC"),
        ({"state": "stopped"}, "stopped at 2026-11-28 22:10 UTC; 2 of 16 trials have ended, and"),
        ({"state": "failed", "error": "3 in a row"}, "2026-11-28 22:10 UTC (3 in a row); 2 of 16"),
        ({}, None),
    ],
)
def test_a_sweep_that_has_not_reached_its_end_says_so(
    tmp_path: Path, changes: dict[str, Any], told: str | None
) -> None:
    content = sweep([trial(0, [20.0]), trial(1, [21.0]), trial(2, None, state="running")])
    page = report(tmp_path, {**content, "planned": 16, "updated": 1795903800.0, **changes})
    assert told is None or told in page.text
    assert ("trials have ended" in page.text) == (told is not None)


def test_a_search_is_told_in_full(tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text("name: best & <only>\n")
    page = report(tmp_path, search())

    assert page.text.startswith("demo – QDMR report")
    assert (
        "The best of 6 trials: trial 0002 reaches PSNR 27.10 dB, +1.10 dB against the "
        "experiment's own settings."
    ) in page.text
    assert "uda/validation/psnr, maximised" in page.text
    assert "asha, grace 75, reduction 3" in page.text
    assert "3 finished, 1 stopped early, 1 running, 1 failed; and 2 repeats" in page.text
    # Finished and stopped trials need 18 stages and have trained 8 of them.
    assert "1 vqgan, 1 base, 6 uda; 10 stages taken from the store instead of training" in page.text
    assert "13 min 32 s the trials took 4 min 41 s together" in page.text
    assert "27.10 ± 0.08 over 3 seeds" in page.text
    assert "Aberrated input 24.00 0.7000" in page.text
    assert "Baseline: trial 0000 26.90 0.8100" in page.text
    assert "Best: trial 0002 27.40 +0.50 (better) 0.8200 +0.0100 (better)" in page.text
    assert "Best: trial 0002 27.10 ± 0.08 3 27.10 27.00 27.20" in page.text
    assert "CUDA out of memory" in page.text
    assert "0.001 … 0.1, log" in page.text
    assert "when stages.uda.feature_gan is 0.1" in page.text
    assert "name: best & <only>" in page.text
    links = [str(a["href"]) for tag, a in page.tags if tag == "a" and "download" in a]
    assert [unquote(link.partition(",")[2]) for link in links] == ["name: best & <only>\n"]
    assert not {"photographs", "front", "variants"} & ids(page)


def test_the_page_loads_nothing_and_names_everything(tmp_path: Path) -> None:
    page = report(tmp_path, search())

    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")], tag
        if "data-chart" in attributes:
            assert attributes.get("role") == "img"
            assert attributes.get("aria-label")
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:[^\"']+", "", page.source), re.I)
    every = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(every) == len(set(every))
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} <= set(every)


def test_a_run_beside_it_keeps_its_own_report(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "trials" / "0000")
    write(tmp_path, search())

    assert "QDMR run report" in Page(Path(build_report(run))).text
    assert "QDMR sweep report" in Page(Path(build_report(tmp_path))).text
    assert build_report(tmp_path, tmp_path / "other.html") == str(tmp_path / "other.html")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"metrics": []}',
        '{"metrics": [1]}',
        '{"metrics": [], "trials": [{"id": 3}]}',
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)

    with pytest.raises(QdmrError, match=r"sweep\.json"):
        build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


DEGENERATE = {
    "no trials": sweep([]),
    "no trial has begun": sweep([trial(0, None, state="running", history=[], settings={})]),
    "all failed": sweep([trial(n, None, state="failed", history=[]) for n in range(3)], best=None),
    "values are null": sweep([trial(n, [None]) for n in range(3)]),
    "one value of many is null": sweep([trial(0, [26.0]), trial(1, [None])]),
    "one trial": sweep([trial(0, [26.0])], baseline="0000", importances={"stages.uda.gan": 1.0}),
    "equal values": sweep([trial(n, [0.0]) for n in range(3)]),
    "far apart": sweep([trial(n, [10.0 ** (n * 4)]) for n in range(12)]),
    "not settled": sweep([trial(n, [26.0 + n]) for n in range(3)], best=None, front=[]),
    "only running": sweep([trial(0, [26.0], state="running")], best=None, front=[]),
    "constant parameters": sweep(
        [trial(n, [26.0 + n], settings={"a": 1, "b": 0.5, "c": 2}) for n in range(3)],
        space={"a": {"choice": [1]}, "b": {"float": [0.5, 0.5], "log": True}, "c": {"int": [2, 2]}},
    ),
    "nobody used a parameter": sweep([trial(0, [26.0], settings={})]),
    "odd specifications": sweep(
        [trial(n, [26.0 + n], settings={"a": n, "b": "x", "c": None, "d": [n]}) for n in range(3)],
        space={
            "a": {"odd": 1},
            "b": {"float": [1.0, 0.1], "log": True},
            "c": {"float": [0, 1], "log": True},
            "d": {"choice": []},
        },
    ),
    "ablation without a result": sweep([trial(0, None, state="failed")], space={}),
    "ablation without trials": sweep([], space={}),
    "front without values": {
        **two_objectives(),
        "trials": [trial(0, [None, 1.0]), trial(1, [1.0, None]), trial(2, None)],
    },
    "nothing but metrics": {"metrics": [{"name": "loss", "mode": "min"}]},
    "a state of its own": sweep([trial(0, [26.0], state="paused")]),
}


@pytest.mark.parametrize("content", DEGENERATE.values(), ids=list(DEGENERATE))
def test_degenerate_sweeps_have_a_sensible_page(tmp_path: Path, content: dict[str, Any]) -> None:
    page = report(tmp_path, content)

    assert not re.search(r"\b(nan|inf|None)\b", page.text)
    json.dumps(page.charts, allow_nan=False)
    assert {"results", "search", "trials", "settings"} <= ids(page)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    none = report(tmp_path / "a", DEGENERATE["no trials"]).text
    assert "No trial has a result: there are no trials." in none
    assert "There are no trials yet." in none
    assert "There is no best.yaml in the sweep's folder yet." in none
    assert "There are no figures on images that the search never saw." in none

    failed = report(tmp_path / "b", DEGENERATE["all failed"]).text
    assert "No trial has a result: 3 failed." in failed
    assert "No trial has reported a value yet, so there is nothing to draw." in failed
    assert "No trial has a value, so the parameters cannot be compared." in failed
    assert "The importance of the parameters is not known" in failed


def test_text_from_the_file_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</title></script><img src=x onerror=pwned()>\"'"
    content = search()
    content["name"] = content["sampler"] = content["code_version"] = evil
    content["metrics"] = [{"name": evil, "mode": "max"}]
    content["space"] = {**SPACE, evil: {"choice": [evil], "when": {evil: [evil]}}}
    content["importances"] = {evil: 1.0}
    content["stopping"] = {"rule": evil, "grace": 1, "reduction": 3}
    content["stages_trained"] = {evil: 1}
    content["test"]["input"] = {evil: 1.0}
    for made in content["trials"]:
        made.update(id=f"{made['id']}{evil}", name=evil, state=evil, error=evil, trained=[evil])
        made["settings"][evil] = evil
    content["best"] = content["baseline"] = content["trials"][0]["id"]
    (tmp_path / "best.yaml").write_text(f"# {evil}\n")
    page = report(tmp_path, content)
    alternative = report(tmp_path / "ablation", {**content, "space": {}})

    for made in (page, alternative):
        scripts = [attributes for tag, attributes in made.tags if tag == "script"]
        assert len(scripts) == 4  # two blocks of data, plotly.js and the page's own script
        assert not [tag for tag, a in made.tags if tag == "img" and "onerror" in a]
        assert "<img" not in json.dumps([chart["layout"] for chart in made.charts])
        shown = [trace for chart in made.charts for trace in chart["data"]]
        assert "<img" not in json.dumps([[t.get("name"), t.get("hovertext")] for t in shown])
        assert evil in made.text


def test_a_sweep_in_a_store_has_the_same_report(store: Location, tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text("name: best\n")
    local = report(tmp_path, search())
    there = store.join("sweep")
    for name in ("sweep.json", "best.yaml"):
        there.join(name).write_bytes_atomic((tmp_path / name).read_bytes())

    assert build_report(there.uri) == "s3://lens/runs/sweep/report.html"
    fetched = tmp_path / "fetched.html"
    fetched.write_bytes(there.join("report.html").read_bytes())

    def undated(page: Page) -> str:
        return re.sub(r"Made .* UTC", "", page.text)

    assert undated(Page(fetched)) == undated(local)


# ---------------------------------------------------------------- pictures


def test_best_and_baseline_are_compared_picture_by_picture(make_run, tmp_path: Path) -> None:
    for number in ("0000", "0002"):
        make_run(tmp_path / "trials" / number)
    (tmp_path / "trials" / "0002" / "evaluation" / "coffee" / "uda.png").unlink()
    page = report(tmp_path, search())
    viewer: Any = page.json["viewer-data"]

    assert viewer["left"] == "baseline"
    assert viewer["labels"]["baseline"] == "Baseline"
    assert [photograph["name"] for photograph in page.photographs] == [
        "astronaut",
        "coffee",
        "chelsea",
    ]
    assert list(page.photographs[0]["pictures"]) == ["input", "baseline", "best", "ground_truth"]
    assert list(page.photographs[1]["pictures"]) == ["input", "baseline", "ground_truth"]
    assert page.photographs[0]["metrics"]["best"][0] == "27.50"


def test_without_pictures_there_is_no_comparison(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "trials" / "0002")
    content = search()
    assert [list(photo["pictures"]) for photo in report(tmp_path, content).photographs] == [
        ["input", "best", "ground_truth"]
    ] * 3
    (run / "evaluation.json").write_text("{")
    page = report(tmp_path, content)

    assert page.photographs == []
    assert "trials/0002/evaluation.json: is not JSON" in page.text


def test_a_trial_cannot_lead_out_of_the_sweep(make_run, tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere")
    content = search()
    content["trials"][2]["id"] = content["best"] = "../../elsewhere"

    assert report(tmp_path / "sweep", content).photographs == []


# ---------------------------------------------------------------- axes


def test_log_axes_have_equal_steps_for_equal_factors() -> None:
    scale = parameter_scale(LOG, [0.001, 0.01, 0.1])

    assert [scale.place(value) for value in (0.001, 0.01, 0.1)] == pytest.approx([0.0, 0.5, 1.0])
    assert (0.5, "0.01") in [(pytest.approx(at), text) for at, text in scale.ticks]
    linear = parameter_scale({"float": [0.0, 4.0]}, [1.0])
    assert [linear.place(value) for value in (0.0, 1.0, 4.0)] == pytest.approx([0.0, 0.25, 1.0])


def test_choices_stand_at_even_distances_in_their_order() -> None:
    choices = [[200, 260], [100], "none", None, True]
    scale = parameter_scale({"choice": choices}, [[100]])

    places = [scale.place(choice) for choice in choices]
    assert places == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert [text for _, text in scale.ticks] == ["[200, 260]", "[100]", "none", "null", "true"]
    # A choice that only the experiment's own settings made comes last.
    assert parameter_scale({"choice": [32, 64]}, [48]).place(48) == pytest.approx(5 / 6)


def test_what_has_no_place_on_an_axis_stands_in_a_slot_below_it() -> None:
    scale = parameter_scale(LOG, [MISSING, 0.0, 0.001, 0.1])
    slots = [text for _, text in scale.ticks[:2]]

    assert slots == [NOT_USED, "0"]
    assert 0.0 < scale.place(MISSING) < scale.place(0.0) < scale.place(0.001) < scale.place(0.1)
    assert scale.place(0.1) == pytest.approx(1.0)
    conditional = parameter_scale({"choice": [1, 2]}, [MISSING, 1])
    assert conditional.place(MISSING) < conditional.place(1) < conditional.place(2)
    # None is a value like any other, not a missing one.
    assert parameter_scale({"choice": [None, 1]}, [None]).ticks[0][1] == "null"


def test_axes_hold_what_was_taken_outside_the_space() -> None:
    scale = parameter_scale({"float": [0.0, 1.0]}, [2.0])

    assert scale.place(1.0) == pytest.approx(0.5)
    assert scale.place(2.0) == pytest.approx(1.0)


def test_few_whole_numbers_stand_side_by_side_and_many_on_a_line() -> None:
    few = parameter_scale({"int": [1, 7], "step": 3}, [1, 4, 6])
    many = parameter_scale({"int": [0, 1000]}, [10])

    assert [text for _, text in few.ticks] == ["1", "4", "6", "7"]
    assert many.place(500) == pytest.approx(0.5)
    assert all(float(text).is_integer() for _, text in many.ticks)


def test_constant_parameters_stand_in_the_middle() -> None:
    for spec, value in (({"float": [2.0, 2.0]}, 2.0), ({"choice": ["a"]}, "a"), ({}, 5)):
        assert parameter_scale(spec, [value]).place(value) == pytest.approx(0.5)


def test_a_trial_that_went_wrong_does_not_flatten_the_others() -> None:
    values = [26.0 + 0.1 * index for index in range(12)]

    assert metric_scale([*values, 3.0], 1).low > 20
    assert metric_scale([*values, 900.0], -1).high < 40
    # What is better than the rest is never cut off.
    assert metric_scale([*values, 90.0], 1).high > 90
    assert metric_scale([*values, 3.0], -1).low < 3
    assert metric_scale([1e-4, 1.0], -1).logarithmic


def test_short_names_tell_settings_apart() -> None:
    names = ["stages.uda.gan", "stages.base.gan", "network.width", "width", "a.b.c"]

    assert list(short_names(names).values()) == [
        "uda.gan",
        "base.gan",
        "network.width",
        "width",
        "c",
    ]


# ---------------------------------------------------------------- the search


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("max", [(0, 3.0), (2, 5.0), (6, 6.0)]), ("min", [(0, 3.0), (1, 2.0), (7, 1.0)])],
)
def test_the_best_so_far_only_improves(
    tmp_path: Path, mode: str, expected: list[tuple[int, float]]
) -> None:
    values = [3.0, 2.0, 5.0, None, 9.0, 5.0, 6.0, 1.0]
    trials = [trial(number, [value]) for number, value in enumerate(values)]
    # One that was stopped early might have become worse.
    trials[4]["state"] = "stopped"
    content = sweep(trials, best=None, front=[], metrics=[{"name": "x", "mode": mode}])
    found = read(tmp_path, content)

    assert running_best(found, 0) == expected
    line = traces(draw_history(found, 0))["best so far"]
    assert list(zip(line["x"], line["y"], strict=True))[:-1] == expected
    assert line["line"]["shape"] == "hv"


def test_history_has_a_sign_per_trial_that_tells_its_state(tmp_path: Path) -> None:
    found = read(tmp_path, search())
    chart = draw_history(found, 0)
    signs, shown = marks(chart), traces(chart)

    # A trial that runs without a value has nothing to show, and other seeds belong to the repeats.
    assert set(signs) == {"0000", "0001", "0002", "0003", "0004"}
    assert [x for x, _ in signs.values()] == [int(key) for key in signs]
    assert signs["0002"][1] > signs["0004"][1] > signs["0000"][1]
    # Failed, and stopped below what the others reached: at the edge.
    edge = chart.figure["layout"]["yaxis"]["range"][0]  # type: ignore[union-attr]
    assert signs["0003"][1] == signs["0001"][1] == edge
    assert shown["finished"]["customdata"] == ["0000", "0002", "0004"]
    assert len({symbol for symbol, _ in SYMBOLS.values()}) == len(SYMBOLS)
    text = shown["finished"]["hovertext"][1]
    assert text.split("<br>")[:3] == [
        "trial 0002, finished",
        "PSNR 27.10\N{NO-BREAK SPACE}dB",
        "codebook_size 32",
    ]
    assert "target_feature 0.25" in text
    assert "CUDA out of memory" in shown["failed"]["hovertext"][0]
    assert (shown["best"]["x"], shown["baseline"]["x"]) == ([2], [0])


def test_learning_curves_end_where_their_trials_did(tmp_path: Path) -> None:
    found = read(tmp_path, search())
    curves = traces(draw_learning_curves(found, 0))

    assert set(curves) == {"0000", "0001", "0002", "0004"}
    assert curves["0002"]["x"] == [100, 200, 300]
    assert curves["0001"]["x"] == [100]
    assert curves["0001"]["line"]["dash"] == "dot"
    assert curves["0001"]["marker"]["size"] == [8]
    assert curves["0002"]["name"] == "best"
    # The best lies above all others.
    assert list(curves)[-1] == "0002"


def test_very_long_curves_are_thinned_but_keep_their_end(tmp_path: Path) -> None:
    history = [{"iteration": step, "values": [math.log(step)]} for step in range(1, 5001)]
    found = read(tmp_path, sweep([trial(0, [8.5], history=history)]))
    line = traces(draw_learning_curves(found, 0))["0000"]

    assert len(line["x"]) <= 120
    assert line["x"][-1] == 5000


# ---------------------------------------------------------------- parameters


def test_a_line_per_trial_with_a_value_runs_across_all_axes(tmp_path: Path) -> None:
    content = search()
    found = read(tmp_path, content)
    chart = draw_parallel(found)
    threads = traces(chart)
    heads = chart.figure["layout"]["xaxis"]["ticktext"]  # type: ignore[union-attr]

    # The more important a parameter, the closer it stands to the metric.
    names = ["target_feature", "feature_gan", "codebook_size", "gan (log)", "PSNR dB"]
    assert heads == [f"<b>{name}</b>" for name in names]
    assert set(threads) == {"0000", "0001", "0002", "0004"}
    places = {key: thread["y"] for key, thread in threads.items()}
    assert {len(row) for row in places.values()} == {len(heads)}
    assert all(places[key][0] < places["0002"][0] for key in ("0000", "0001", "0004"))
    # 0 on a logarithmic axis stands below its low end.
    assert places["0000"][3] < min(places[key][3] for key in ("0001", "0002", "0004"))
    assert list(threads)[-1] == "0002"
    assert "2 trials without a value have no line." in report(tmp_path, content).text


def test_shades_go_from_worst_to_best_in_either_mode() -> None:
    values = [20.0, 22.0, 24.0, 26.0]
    for better in (1, -1):
        scale = metric_scale(values, better)
        shades = [shade(value, scale, better) for value in values][::better]
        assert shades == sorted(shades)
        assert shades[0] == 0
        assert shades[-1] == SHADES - 1
        assert shade(-1e9 * better, scale, better) == 0


def test_slices_show_each_parameter_once_the_most_important_first(tmp_path: Path) -> None:
    found = read(tmp_path, search())
    slices = draw_slices(found, 0)
    gan, codebook = slices[0], slices[1]

    assert [slice.title for slice in slices] == [
        "gan",
        "codebook_size",
        "feature_gan",
        "target_feature",
    ]
    assert gan.remark == "log, importance 60.0 %"
    places = marks(gan)
    assert places["0000"][0] < places["0001"][0] == places["0004"][0] == places["0002"][0]
    assert marks(codebook)["0002"][0] < marks(codebook)["0000"][0]
    assert NOT_USED in slices[3].figure["layout"]["xaxis"]["ticktext"]


def test_trials_of_a_category_are_spread_the_same_way_every_time(tmp_path: Path) -> None:
    found = read(tmp_path, sweep([trial(number, [26.0]) for number in range(40)]))
    scale = parameter_scale({"choice": [32, 64]}, [64])
    places = [jittered(one, scale, 64) for one in found.searched]

    assert places == [jittered(one, scale, 64) for one in found.searched]
    assert len(set(places)) == 40
    assert all(abs(at - scale.place(64)) < 0.15 + 1e-9 for at in places)
    assert jittered(found.searched[7], parameter_scale(LOG, []), 0.01) == pytest.approx(0.5)


def test_bars_of_the_importances_are_as_long_as_they_say(tmp_path: Path) -> None:
    found = read(tmp_path, search())
    chart = draw_importances(found)
    (bars,) = traces(chart).values()

    assert chart is not None
    assert chart.figure["layout"]["yaxis"]["ticktext"] == ["gan", "codebook_size"]
    assert bars["text"] == ["60.0 %", "10.0 %"]
    assert bars["x"] == pytest.approx([60.0, 10.0])


# ---------------------------------------------------------------- several objectives


def test_the_front_is_connected_along_the_edge_of_what_it_dominates(tmp_path: Path) -> None:
    found = read(tmp_path, two_objectives())
    chart = draw_front(found, 0, 1)
    signs, line = marks(chart), traces(chart)["Pareto front"]
    corners = list(zip(line["x"], line["y"], strict=True))

    assert corners[::2] == [signs["0002"], signs["0001"], signs["0000"]]
    # Higher PSNR is up, lower LPIPS is left: a corner is as far right and as low as either.
    for before, corner, after in zip(corners[::2], corners[1::2], corners[2::2], strict=False):
        assert corner == (max(before[0], after[0]), min(before[1], after[1]))


def test_two_objectives_have_their_charts_and_the_settings_of_the_front(tmp_path: Path) -> None:
    page = report(tmp_path, two_objectives())

    assert "3 of 5 trials are on the Pareto front of PSNR and LPIPS." in page.text
    assert f"{PSNR}, maximised; {LPIPS}, minimised" in page.text
    assert page.source.count("of each trial</strong>") == 2
    assert page.text.count("over each parameter") == 2
    assert "Best: trial 0002 0.1000" in page.text
    tables = page.source.split('<table class="sortable trials">')
    assert [table.count("<tr data-trial=") for table in tables[1:]] == [3, 5]


def test_three_objectives_are_shown_as_pairs_with_the_first(tmp_path: Path) -> None:
    content = two_objectives()
    content["metrics"].append({"name": "time/step", "mode": "min"})
    for made in content["trials"]:
        made["values"].append(0.001 * (made["number"] + 1))
        made["history"] = []
    found = read(tmp_path, content)
    page = report(tmp_path, content)

    assert "PSNR and LPIPS" in page.text
    assert "PSNR and time/step" in page.text
    assert page.text.count("up: PSNR dB, higher is better") == 2
    # Seen from one side, a front of three objectives is no line.
    assert "Pareto front" not in traces(draw_front(found, 0, 1))
    assert "0.001" in page.text


def test_metrics_with_the_same_ending_keep_their_names(tmp_path: Path) -> None:
    metrics = [{"name": "base/psnr", "mode": "max"}, {"name": "uda/psnr", "mode": "max"}]
    found = read(tmp_path, {**two_objectives(), "metrics": metrics})

    labels = [objective.full_label for objective in found.objectives]
    assert labels == ["base/psnr dB", "uda/psnr dB"]


# ---------------------------------------------------------------- ablations


def test_an_ablation_compares_its_variants_with_the_first(tmp_path: Path) -> None:
    content = ablation()
    page = report(tmp_path, content)

    assert "QDMR ablation report" in page.text
    assert "The best of 3 variants is full: full (trial 0000) reaches PSNR 26.10 dB." in page.text
    assert "full 26.10 ± 0.14 2 seeds: 26.00, 26.20" in page.text
    assert "no codebook 25.10 ± 0.14 −1.00 (worse) 2 seeds: 25.00, 25.20" in page.text
    assert "odd n/a" in page.text
    assert "no such stage" in page.text
    assert "variants" in ids(page)
    assert not {"parameters", "front"} & ids(page)
    assert "best so far" not in page.text


def test_variants_have_a_sign_per_seed_around_their_mean(tmp_path: Path) -> None:
    chart = draw_variants(read(tmp_path, ablation()), 0)
    signs, layout = marks(chart), chart.figure["layout"]  # type: ignore[union-attr]
    means = [t for t in traces(chart).values() if t["marker"].get("symbol") == "line-ns"]

    assert layout["yaxis"]["ticktext"] == ["full", "no codebook", "odd"]
    assert set(signs) == {"0000", "0000-s1", "0001", "0001-s1"}
    assert [mean["y"] for mean in means] == [[0], [1]]
    middle = (signs["0000"][0] + signs["0000-s1"][0]) / 2
    assert means[0]["x"] == pytest.approx([middle])
    assert layout["shapes"][0]["x0"] == pytest.approx(middle)


def test_figures_on_unseen_images_are_means_over_seeds(tmp_path: Path) -> None:
    content = ablation()
    figures = {made["id"]: {"psnr": 20.0 + index} for index, made in enumerate(content["trials"])}
    content["test"] = {"images": 1, "trials": figures, "input": {}}
    text = report(tmp_path, content).text

    assert "Means over 1 image; the change from full in small print" in text
    assert "full 20.50 ± 0.71 2 seeds no codebook 22.50 ± 0.71 +2.00 (better) 2 seeds" in text
