"""What the report says about complete, unfinished, damaged and hostile run folders."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_page import Page

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.codebook.compute import codebook_view, write_view
from qdmr_ray.evaluate.codebook.usage import CodebookUsage, SetUsage
from qdmr_ray.nets import NetworkSettings
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.report import build_report
from qdmr_ray.report.charts import TEMPLATE, draw_curves, plain
from qdmr_ray.report.codebook import draw_usage
from qdmr_ray.storage import Location, open_location

LARGEST_REPORT = 15_000_000


def report(run: Path) -> Page:
    return Page(Path(build_report(run)))


def rewrite(run: Path, change) -> None:
    """Changes evaluation.json in place."""
    content = json.loads((run / "evaluation.json").read_text())
    change(content)
    (run / "evaluation.json").write_text(json.dumps(content))


def test_a_complete_run_is_told_in_full(make_run, tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))

    assert "UDA: +1.20 dB PSNR over the aberrated input on 3 held-out photographs." in page.text
    assert "LPIPS is switched off in this run." in page.text
    assert "▲" not in page.text  # the sign of a gain is text; the arrow comes from the style
    assert "24.70 −0.30 (worse)" in page.text
    assert "40 iterations, 1 min 18 s" in page.text
    assert "stages.vqgan.lpips = 0" in page.text
    assert "stages.vqgan.semantic = 0" in page.text
    assert "stages.source_only.lpips" not in page.text
    assert "stages.uda.lpips" not in page.text
    assert "0 throughout, so not drawn: source/lpips" in page.text
    assert "2.14.1" in page.text
    assert "iterations: 40" in page.text
    assert "Codebook atlas" in page.text
    assert [photograph["name"] for photograph in page.photographs] == [
        "astronaut",
        "coffee",
        "chelsea",
    ]
    first = page.photographs[0]
    assert list(first["pictures"]) == ["input", "base", "uda", "ground_truth"]
    assert list(first["differences"]) == ["input", "base", "uda"]
    # The difference of |190 − 120|, |30 − 120|, |30 − 120| is 83 of 255 on average.
    assert "amplified 3 ×" in page.text


def test_the_page_loads_nothing_and_runs_nothing_else(make_run, tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))

    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:[^\"']+", "", page.source), re.I)
    policy = next(attributes["content"] for _, attributes in page.tags if "content" in attributes)
    assert "default-src 'none'" in str(policy)
    assert "unsafe-eval" not in str(policy)
    scripts = [a for tag, a in page.tags if tag == "script" and "type" not in a]
    assert str(policy).count("'sha256-") == len(scripts) == 2


def test_every_control_and_picture_has_a_name(make_run, tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    labelled = {attributes.get("for") for tag, attributes in page.tags if tag == "label"}

    for tag, attributes in page.tags:
        if tag == "img":
            assert "alt" in attributes
        if tag == "select" or attributes.get("type") == "range":
            assert attributes.get("aria-label") or attributes.get("id") in labelled
        if "data-chart" in attributes:
            assert attributes.get("role") == "img"
            assert attributes.get("aria-label")


def test_a_run_that_has_only_begun_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: fresh\nrun: [vqgan, base]\n")

    page = report(tmp_path)

    assert "This run has not been evaluated yet." in page.text
    assert "qdmr evaluate" in page.text
    assert "vqgan/metrics.jsonl has no lines yet" in page.text
    assert "environment.json is missing" in page.text


def test_no_run_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QdmrError, match=r"no config\.yaml"):
        build_report(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(QdmrError, match=r"config\.yaml cannot be read"):
        build_report(tmp_path)
    (tmp_path / "config.yaml").write_text("- 1")
    with pytest.raises(QdmrError, match="mapping"):
        build_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_page_that_cannot_be_written_leaves_nothing(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")

    with pytest.raises(QdmrError, match="missing"):
        build_report(run, tmp_path / "missing" / "report.html")
    assert not (tmp_path / "missing").exists()
    assert build_report(run, tmp_path / "other.html") == str(tmp_path / "other.html")
    assert (tmp_path / "other.html").is_file()


def test_a_loss_is_told_as_plainly_as_a_gain(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rewrite(run, lambda content: content["stages"]["uda"].update(psnr=24.5))

    assert "UDA: −0.50 dB PSNR against the aberrated input" in report(run).text


def test_metrics_without_ground_truth_are_read_the_right_way_round(
    make_run, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")

    def only_niqe(content: dict) -> None:
        content["input"] = {"niqe": 5.68}
        content["stages"] = {"uda": {"niqe": 3.95}}
        content["per_image"] = []

    rewrite(run, only_niqe)
    page = report(run)

    assert "UDA: −1.730 NIQE (lower is better) against the aberrated input" in page.text
    assert "3.950 −1.730 (better)" in page.text


def test_photographs_without_ground_truth_are_shown_without_figures(
    make_run, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    for name in ("astronaut", "coffee", "chelsea"):
        (run / "evaluation" / name / "ground_truth.png").unlink()
    rewrite(
        run,
        lambda content: content.update(
            input={}, stages={"uda": {}}, per_image=[{"name": "astronaut"}, {"name": "coffee"}]
        ),
    )
    page = report(run)

    assert "UDA was evaluated on 3 held-out photographs." in page.text
    assert "no ground truth" in page.text
    assert "Difference maps" not in page.text
    assert list(page.photographs[0]["pictures"]) == ["input", "uda"]
    assert page.photographs[0]["differences"] == {}


def test_figures_that_are_not_finite(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")

    def spoil(content: dict) -> None:
        content["input"] = {"psnr": None, "ssim": math.nan}
        content["stages"]["uda"] = {"psnr": math.inf, "ssim": None}
        content["per_image"][0]["input"]["psnr"] = math.nan

    rewrite(run, spoil)
    with (run / "base" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 41, "time": 1.0, "source/l1": NaN}\n')
        file.write('{"iteration": 42, "time": 1.0, "source/l1": Infinity}\n')
        file.write('{"iteration": 43, "time": 1.0, "source/l1": null}\n')
    page = report(run)

    assert "UDA was evaluated on 3 held-out photographs." in page.text
    assert "∞" in page.text
    assert "n/a" in page.text
    assert "nan" not in page.text.lower().replace("finance", "")
    assert "3 values not finite" in page.text


def test_damaged_files_are_named_and_the_rest_is_shown(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "notes.json").write_text("{")
    (run / "environment.json").write_text("[]")
    (run / "base" / "pictures" / "samples.png").write_bytes(b"no picture")
    (run / "evaluation" / "coffee" / "uda.png").write_bytes(b"no picture")
    write_png(run / "evaluation" / "chelsea" / "uda.png", np.zeros((8, 8, 3), np.uint8))
    with (run / "uda" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 41, "sour')
    page = report(run)

    for problem in (
        "notes.json cannot be read",
        "environment.json cannot be read",
        "samples.png",
        "uda/metrics.jsonl: 1 unreadable line(s) left out",
        "chelsea differ in size",
    ):
        assert problem in page.text
    assert [photograph["name"] for photograph in page.photographs] == ["astronaut", "coffee"]
    assert list(page.photographs[1]["pictures"]) == ["input", "base", "ground_truth"]


def test_names_and_settings_cannot_become_markup(make_run, tmp_path: Path) -> None:
    hostile = "<script>window.pwned=1<(script>.png"
    run = make_run(tmp_path / "run", names=(hostile, "b", '"><img src=x onerror=pwned()>'))
    evil = "</script></pre><script>pwned()</script>"
    (run / "config.yaml").write_text(json.dumps({"name": evil, "run": ["base"], "x": evil}))
    (run / "notes.json").write_text(json.dumps([evil]))
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    with (run / "base" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 41, "time": 1, evil: 0.5}) + "\n")
    page = report(run)

    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert len(scripts) == 4  # two blocks of data, plotly.js and the page's own script
    assert not [tag for tag, attributes in page.tags if tag == "img" and "onerror" in attributes]
    assert evil in page.text
    assert page.photographs[0]["name"] == hostile


def test_names_cannot_lead_out_of_the_run(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_png(tmp_path / "input.png", np.zeros((8, 8, 3), np.uint8))
    rewrite(run, lambda content: content["per_image"][0].update(name="../.."))

    page = report(run)

    assert [photograph["name"] for photograph in page.photographs] == ["coffee", "chelsea"]
    assert "no name of a folder in evaluation/" in page.text


def test_a_resumed_run_counts_its_newest_lines(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = [{"iteration": i, "time": 2.0e9 + i, "source/l1": 7.0} for i in (1, 2)]
    (run / "base" / "metrics.jsonl").write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in [*({**line, "source/l1": 9.0} for line in lines), *lines]
        )
    )

    page = report(run)
    chart = next(
        chart
        for chart in page.charts
        if chart["data"][0]["x"] == [1.0, 2.0] and len(chart["data"]) == 1
    )

    assert "2 iterations" in page.text
    assert chart["data"][0]["y"] == [7.0, 7.0]


def test_only_the_newest_picture_of_a_series_is_shown(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for iteration in (900, 1000, 20):
        write_png(run / "uda" / "pictures" / f"samples_{iteration}.png", np.zeros((8, 8), np.uint8))

    text = report(run).text

    assert "Samples, iteration 1,000" in text
    assert "iteration 900" not in text


def test_many_photographs_are_spread_over_their_gains(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    names = [f"photo{index:02}" for index in range(40)]
    picture = np.zeros((16, 16, 3), np.uint8)
    for name in names:
        for kind in ("input", "uda"):
            (run / "evaluation" / name).mkdir(exist_ok=True)
            write_png(run / "evaluation" / name / f"{kind}.png", picture)

    def crowd(content: dict) -> None:
        content["images"] = 40
        content["per_image"] = [
            {"name": name, "input": {"psnr": 20.0}, "uda": {"psnr": 20.0 + (index * 7) % 40}}
            for index, name in enumerate(names)
        ]

    rewrite(run, crowd)
    page = report(run)

    gains = sorted((names.index(item["name"]) * 7) % 40 for item in page.photographs)
    assert gains[0] == 0
    assert gains[-1] == 39
    assert max(np.diff(gains)) <= 4
    assert "12 of 40 photographs are shown" in page.text
    assert page.text.count("photo") >= 40


def test_the_page_stays_small_for_the_worst_pictures(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    names = [f"noise{index}" for index in range(8)]
    random = np.random.default_rng(0)
    for name in names:
        (run / "evaluation" / name).mkdir()
        for kind in ("input", "base", "uda", "ground_truth"):
            noise = random.integers(0, 256, (320, 480, 3), dtype=np.uint8)
            write_png(run / "evaluation" / name / f"{kind}.png", noise)
    rewrite(run, lambda content: content.update(per_image=[{"name": name} for name in names]))

    path = Path(build_report(run))

    assert path.stat().st_size < LARGEST_REPORT
    shown = Page(path)
    assert 4 <= len(shown.photographs) < 8
    assert f"{len(shown.photographs)} of 8 photographs are shown" in shown.text


def test_large_photographs_are_reduced(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", names=("a", "b", "c"))
    for kind in ("input", "base", "uda", "ground_truth"):
        write_png(run / "evaluation" / "a" / f"{kind}.png", np.zeros((100, 2048, 3), np.uint8))

    photograph = report(run).photographs[0]

    assert (photograph["width"], photograph["height"], photograph["scale"]) == (2048, 100, 0.5)


def values(chart, number: int = 0) -> list[float | None]:
    return chart.figure["data"][number]["y"]


def test_curves_that_fall_far_get_a_log_axis_and_gaps_where_values_are_missing() -> None:
    falling = [(float(i), 10.0**-i) for i in range(5)]
    gap = [(0.0, 1.0), (1.0, None), (2.0, 1.0)]

    logarithmic = draw_curves("loss", [("source", 0, falling)])
    linear = draw_curves("loss", [("source", 0, gap)])

    assert logarithmic.figure["layout"]["yaxis"]["type"] == "log"
    assert "log scale" in logarithmic.remark
    assert "type" not in linear.figure["layout"]["yaxis"]
    assert "1 value not finite" in linear.remark
    assert values(linear) == [1.0, None, 1.0]
    # A point between gaps has no line, so it needs a marker.
    assert linear.figure["data"][0]["mode"] == "lines+markers"


def test_one_spike_does_not_flatten_a_curve() -> None:
    points = [(float(i), 1.0 + 0.5 * (i % 2)) for i in range(200)]
    points[100] = (100.0, -5000.0)

    chart = draw_curves("loss", [("source", 0, points)])

    assert "peaks cut off" in chart.remark
    low, high = chart.figure["layout"]["yaxis"]["range"]
    assert -1000 < low < high < 100
    # The logged values stay in the chart: a double click shows them all.
    assert min(values(chart)) == -5000.0


def test_very_long_curves_are_thinned_but_keep_their_spikes_and_their_end() -> None:
    points = [(float(i), 1.0) for i in range(1, 200_001)]
    points[77_777] = (77_778.0, 50.0)
    chart = draw_curves("loss", [("source", 0, points)])

    assert all(len(trace["x"]) <= 240 for trace in chart.figure["data"])
    assert 50.0 in values(chart, 0)
    assert chart.figure["data"][1]["x"][-1] == 200_000.0


@pytest.mark.parametrize("found", [[3.0], [0.0, 0.0], [None, None], [-1e9, 1e9], [1e-12, 2e-12]])
def test_odd_curves_are_drawn(found: list[float | None]) -> None:
    chart = draw_curves("loss", [("source", 0, [(float(i), v) for i, v in enumerate(found)])])

    # Standard JSON knows neither.
    text = json.dumps(chart.data, allow_nan=False)
    assert json.loads(text)["data"][0]["y"] == found


def test_names_in_a_chart_are_shown_as_they_are() -> None:
    evil = '<a href="https://x">b</a> & <b>'
    chart = draw_curves("loss", [(evil, 0, [(1.0, 2.0)])])

    assert chart.figure["data"][0]["name"] == plain(evil)
    assert "<" not in plain(evil)
    assert evil in chart.summary


def test_colours_of_charts_are_those_of_the_style_sheet(make_run, tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    named = set(re.findall(r"var\((--[\w-]+)\)", json.dumps([TEMPLATE, page.charts])))

    assert {"--s0", "--ink", "--line"} <= named
    assert all(f"{name}:" in page.source for name in named)
    assert "#" not in json.dumps(page.charts)


STATISTICS = {
    "statistics": {
        "input": {"psnr": {"mean": 25.0, "median": 24.4, "ci95": [23.25, 27.75], "n": 3}},
        "uda": {
            "psnr": {"mean": 26.2, "median": 26.0, "ci95": None, "n": 2},
            "ssim": {"mean": None, "median": None, "ci95": None, "n": 0},
        },
    },
    "failed": [{"name": "IMG_0031", "reason": "wrong <checksum>"}],
    "niqe_parameters": "pris.npz, sha256 5e5e",
    "provenance": {"border": 4, "models": {"uda": "ab" * 32}, "digest": ""},
    "environment": {"torch": "2.99.0", "device": "NVIDIA H100", "dtype": "float32"},
}


def test_medians_intervals_and_failures_are_told(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = report(run).text
    assert "95 %" not in before
    assert "median" not in before
    rewrite(run, lambda content: content.update(STATISTICS))
    text = report(run).text

    assert "25.00 median 24.40 95 %: 23.25 … 27.75" in text
    assert "median 26.00 of 2" in text
    assert "1 photograph could not be evaluated, and is in no figure" in text
    assert "IMG_0031 : wrong <checksum>" in text
    assert "NIQE compares with the pristine parameters in pris.npz, sha256 5e5e." in text
    assert "models.uda abababababab…" in text
    assert "border 4" in text
    assert "torch 2.99.0 device NVIDIA H100 dtype float32" in text
    assert "None" not in text.replace("None: every", "")


@pytest.mark.parametrize("wrong", [{"statistics": []}, {"failed": {"a": 1}}, {"per_image": 3}])
def test_a_damaged_evaluation_is_told_and_the_rest_is_shown(
    make_run, tmp_path: Path, wrong: dict
) -> None:
    run = make_run(tmp_path / "run")
    rewrite(run, lambda content: content.update(wrong))
    text = report(run).text

    assert f"evaluation.json: {next(iter(wrong))}" in text
    assert "This run has not been evaluated yet." in text
    assert "40 iterations" in text


def test_every_metric_of_a_photograph_is_in_the_table(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rewrite(run, lambda content: content["per_image"][0]["uda"].update(niqe=3.456, lpips=0.25))
    page = report(run)

    groups = [a for tag, a in page.tags if tag == "th" and a.get("scope") == "colgroup"]
    assert len(groups) == 4
    assert "3.456" in page.text
    assert "0.2500" in page.text


def test_an_evaluation_alone_has_a_report(make_run, tmp_path: Path) -> None:
    run, alone = make_run(tmp_path / "run"), tmp_path / "alone"
    alone.mkdir()
    shutil.copytree(run / "evaluation", alone / "evaluation")
    shutil.copy(run / "evaluation.json", alone)
    page = report(alone)

    assert (alone / "report.html").is_file()
    assert page.text.startswith("alone – QDMR report")
    assert "QDMR evaluation report" in page.text
    assert len(page.photographs) == 3
    assert "An evaluation alone" in page.text
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"results", "photographs", "figures", "settings"} <= ids
    assert not {"training", "codebook"} & ids
    links = [attributes.get("href") for tag, attributes in page.tags if tag == "a"]
    assert {str(link)[1:] for link in links} <= ids


def test_the_codebook_is_read_and_never_computed(
    make_run, add_vqgan, tmp_path: Path, tiny_network: NetworkSettings, tiny_dataset: Path
) -> None:
    run = make_run(tmp_path / "run")
    assert "Codebook" not in re.sub("Codebook atlas", "", report(run).text)
    add_vqgan(run, tiny_network, tiny_dataset)
    text = report(run).text
    assert "There is no codebook.json yet. qdmr codebook on this run makes it" in text
    assert not (run / "codebook.json").exists()

    write_view(codebook_view(open_location(run)), open_location(run))
    page = report(run)
    written = json.loads((run / "codebook.json").read_text())
    assert f"{written['groups']['target_own']} of 16 codes" in page.text
    assert "of what target photographs choose falls on codes" in page.text
    alternatives = [str(attributes.get("alt")) for tag, attributes in page.tags if tag == "img"]
    assert any(text.startswith("Atlas of the codebook") for text in alternatives)
    chart = next(chart for chart in page.charts if chart["data"][0]["type"] == "bar")
    live = 16 - written["groups"]["dead"]
    assert [len(trace["x"]) for trace in chart["data"]] == [live, live]
    assert len(chart["table"]["rows"]) == live

    # Trained again: the old view is of another network.
    add_vqgan(run, tiny_network, tiny_dataset)
    text = report(run).text
    assert "codebook.json is of another network" in text
    assert "of what target photographs choose" not in text


def test_bars_of_the_codebook_stand_where_the_counts_say() -> None:
    source, target = (
        SetUsage(photographs=1, crops=1, counts=counts) for counts in ((0, 90, 10), (100, 0, 0))
    )
    chart = draw_usage(CodebookUsage(source=source, target=target, crop=8))
    up, down = (trace["y"] for trace in chart.figure["data"])

    assert chart.table is not None
    assert chart.table["rows"] == [
        ["1", "the source's own", 90.0, 0.0],
        ["2", "the source's own", 10.0, 0.0],
        ["0", "the target's own", 0.0, 100.0],
    ]
    # Heights go with the square root of the share.
    assert up == pytest.approx([0.9**0.5, 0.1**0.5, 0.0], abs=1e-4)
    assert down == pytest.approx([0.0, 0.0, -1.0])


def test_a_run_in_a_store_has_the_same_report(
    make_run,
    add_vqgan,
    store: Location,
    tmp_path: Path,
    tiny_network: NetworkSettings,
    tiny_dataset: Path,
) -> None:
    run = make_run(tmp_path / "run")
    data = store.join("data")
    for file in tiny_dataset.iterdir():
        data.join(file.name).write_bytes_atomic(file.read_bytes())
    add_vqgan(run, tiny_network, data.uri)
    there = store.join("demo")
    for file in filter(Path.is_file, run.rglob("*")):
        there.join(*file.relative_to(run).parts).write_bytes_atomic(file.read_bytes())

    assert build_report(there.uri) == "s3://lens/runs/demo/report.html"
    fetched = tmp_path / "fetched.html"
    fetched.write_bytes(there.join("report.html").read_bytes())
    local = report(run)
    remote = Page(fetched)

    def undated(page: Page) -> str:
        return re.sub(r"Made .* UTC", "", page.text)

    assert undated(remote) == undated(local)
    assert remote.json == local.json
    out = tmp_path / "out.html"
    assert build_report(there, out) == str(out)
    with pytest.raises(QdmrError, match=r"s3://lens/runs/none is not a run folder"):
        build_report("s3://lens/runs/none")
