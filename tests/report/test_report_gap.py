"""What the report says about the gap between the lenses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.damage import damaged_values, holds
from report.both_lenses import STAGES, both_lenses
from report_page import Page
from run_fixtures import CONFIG

from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.report import build_report
from qdmr_ray.report.charts import Chart
from qdmr_ray.report.gap import gap_section

NAMES = ("astronaut", "coffee", "chelsea")


@pytest.fixture
def run(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A run folder whose evaluation knows both lenses."""
    config = {**CONFIG, "run": ["source_only", "vqgan", "base", "uda"]}
    folder = make_run(tmp_path / "run", config=config)
    rewrite(folder, lambda content: content.update(known()))
    return folder


def known() -> dict[str, Any]:
    return {
        "stages": {stage: {"psnr": 21.0, "ssim": 0.7} for stage in STAGES},
        "gap": both_lenses(NAMES),
    }


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "evaluation.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def page_of(folder: Path) -> Page:
    return Page(Path(build_report(folder)))


def chart(page: Page, title: str) -> dict[str, Any]:
    """A chart's figure, found by its title in the order of the page."""
    titles = [
        attributes["data-chart"] for _, attributes in page.tags if attributes.get("data-chart")
    ]
    at = page.source.index(f"<strong>{title}")
    number = page.source[at:].split('data-chart="')[1].split('"')[0]
    assert number in titles
    return page.charts[int(number)]


def test_without_both_lenses_there_is_no_panel(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert "The gap between the lenses" not in page.text
    assert 'href="#gap"' not in page.source


def test_the_gap_is_told_in_words_tables_and_charts(run: Path) -> None:
    page = page_of(run)
    assert "Could not be read" not in page.text
    assert 'href="#gap"' in page.source
    assert (
        "UDA: PSNR 28.00 dB on the source lens and 21.00 on the target lens, a gap of +3.00 (95 %: "
        "+3.00 to +3.00)." in page.text
    )
    assert (
        "s2t images are 2.00 dB (95 %: +2.00 to +2.00) nearer to the target lens's pictures than "
        "the source lens's are: PSNR 31.00 instead of 29.00, spectrum distance 1.50 instead of "
        "3.00 dB." in page.text
    )
    assert (
        "UDA over Source-only by field, dB: centre +2.00, middle +2.00, corner +4.00." in page.text
    )
    # The table of both lenses, its last column by the metrics' own digits.
    assert "UDA 28.00 21.00 +3.00 95 %: +3.00 … +3.00" in page.text
    # What s2t changes, of each metric.
    assert "s2t image of it 31.00 +2.00 against the plain picture" in page.text
    assert "−1.50 against the plain picture" in page.text
    # Codes: used, perplexity, divergence.
    assert "VQGAN 4 4 4 1 2.8 2.9 1.0 0.480 0.219" in page.text
    lenses = chart(page, "PSNR on both lenses")
    assert lenses["layout"]["yaxis"]["ticktext"][-1] == "UDA"
    assert [trace["name"] for trace in lenses["data"][-2:]] == ["source lens", "target lens"]
    assert lenses["data"][-2]["x"][-1] - lenses["data"][-1]["x"][-1] == 7.0
    spectra = chart(page, "Power against the target lens&#39;s picture")
    assert [trace["y"][-1] for trace in spectra["data"]] == [-7.5, -3.0, -1.5]
    zones = chart(page, "Gain over Source-only by place in the field")
    assert [trace["name"] for trace in zones["data"]] == ["Base", "UDA"]
    assert zones["data"][1]["y"] == [2.0, 2.0, 4.0]


def test_without_source_only_the_zones_are_compared_with_the_input(run: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["gap"]["zones"].update(baseline=None, gain={})

    rewrite(run, change)
    page = page_of(run)
    zones = chart(page, "Gain over aberrated input by place in the field")
    assert zones["data"][-1]["y"] == [4.0, 4.0, 8.0]
    assert not zones["data"][-1]["error_y"]["visible"]
    assert "over Source-only" not in page.text


def test_without_a_vqgan_there_are_gap_and_zones_alone(run: Path) -> None:
    rewrite(run, lambda content: content["gap"].update(style=None, codes={}))
    page = page_of(run)
    assert "PSNR on both lenses" in page.text
    assert "What comes near to the target lens" not in page.text
    assert "choose codes" not in page.text


def test_pictures_of_the_source_lens_and_s2t_can_be_compared(run: Path) -> None:
    for name in NAMES:
        for kind in ("source_lens", "s2t"):
            picture = np.full((64, 96, 3), 90, dtype=np.uint8)
            write_png(run / "evaluation" / name / f"{kind}.png", picture)
    page = page_of(run)
    first = page.photographs[0]
    wanted = ["input", "source_lens", "s2t", "base", "uda", "ground_truth"]
    assert [kind for kind in first["pictures"] if kind != "source_only"] == wanted
    viewer: Any = page.json["viewer-data"]
    assert viewer["labels"]["s2t"] == "s2t image"
    assert viewer["labels"]["source_lens"] == "Through the source lens"


def test_names_and_values_of_the_gap_are_text(run: Path) -> None:
    hostile = "</script><img src=x onerror=pwned()>"

    def change(content: dict[str, Any]) -> None:
        gap = content["gap"]
        gap["codes"] = {hostile: gap["codes"]["uda"]}
        gap["zones"].update(baseline=hostile)
        gap["source_lens"]["uda"][hostile] = gap["source_lens"]["uda"]["psnr"]
        gap["style"]["statistics"]["s2t"][hostile] = gap["style"]["statistics"]["s2t"]["psnr"]

    rewrite(run, change)
    page = page_of(run)
    assert not [tag for tag, attributes in page.tags if attributes.get("src") == "x"]
    assert hostile in page.text


def test_a_gap_that_cannot_be_drawn_leaves_the_page(run: Path) -> None:
    rewrite(run, lambda content: content["gap"]["style"].update(statistics={}, frequencies=[0.1]))
    page = page_of(run)
    assert "UDA" in page.text


def damageable() -> dict[str, Any]:
    """A small evaluation, most of which is about the gap."""
    per_image = [{"name": name, "input": {"psnr": 20.0}} for name in NAMES]
    return {"images": 3, "input": {"psnr": 20.0}, "per_image": per_image, **known()}


def test_hundreds_of_damaged_gaps_are_read_or_refused() -> None:
    def read(values: Any) -> None:
        text = json.dumps(values, default=str)
        written = Evaluation.parse(text, "evaluation.json").to_json()
        assert Evaluation.parse(written, "again").to_json() == written

    holds(read, damaged_values(damageable()), examples=80)


def test_charts_of_damaged_gaps_are_json() -> None:
    def show(values: Any) -> None:
        evaluation = Evaluation.parse(json.dumps(values, default=str), "evaluation.json")
        section = gap_section(evaluation) or {}
        for drawn in section.values():
            if isinstance(drawn, Chart):
                json.dumps(drawn.data, allow_nan=False)

    holds(show, damaged_values(damageable()), examples=80)


@pytest.mark.slow
def test_some_damaged_gaps_leave_a_page(run: Path) -> None:
    def show(values: Any) -> None:
        (run / "evaluation.json").write_text(json.dumps(values, default=str))
        assert "Settings and environment" in page_of(run).text

    holds(show, damaged_values(damageable()), examples=10)
