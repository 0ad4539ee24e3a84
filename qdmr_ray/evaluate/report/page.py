"""Puts the page together and writes it.

    from qdmr_ray.evaluate.report import build_report
    build_report("runs/demo")     # writes runs/demo/report.html
    build_report("s3://bucket/runs/lens")

The page needs no network: pictures are data URIs, and a content security policy lets no script run
but its own, so that nothing in a file's name or a setting can.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.report import charts, figures, pictures
from qdmr_ray.evaluate.report.charts import Chart
from qdmr_ray.evaluate.report.codebook import codebook_section
from qdmr_ray.evaluate.report.evaluation import GROUND_TRUTH, INPUT, Evaluation, label
from qdmr_ray.evaluate.report.run_folder import PICTURE_SUFFIX, RunData, read_run, switched_off
from qdmr_ray.storage import Location, open_location, write_file_atomic

REPORT_FILE = "report.html"
Progress = Callable[[int, int], None]
ASSETS = importlib.resources.files("qdmr_ray.evaluate.report") / "assets"
# A picture that training wrote more than once: name-000200.png or name_000200.png.
SERIES_NAME = re.compile(r"(?:(?P<name>.+)[-_])?(?P<iteration>\d+)")


@dataclass(frozen=True, kw_only=True)
class TrainingPicture:
    """A picture that training left, as a data URI."""

    uri: str
    width: int
    height: int
    caption: str


@dataclass(frozen=True, kw_only=True)
class StageSection:
    """What the page shows of one stage's training."""

    key: str
    label: str
    facts: str
    charts: list[Chart]
    housekeeping: list[Chart]
    zero: list[str]
    pictures: list[TrainingPicture]


def build_report(
    run: Location | Path | str,
    out: Location | Path | str | None = None,
    *,
    progress: Progress | None = None,
) -> str:
    """Writes the report of a run to ``out`` (``RUN/report.html``); gives its path or ``s3://…``.

    ``run`` is a run folder or a folder with an evaluation alone, here or in a store. Everything
    else may be missing: the page then says what is. Where the run has a trained VQGAN and its
    dataset can be reached, ``codebook.json`` and ``codebook.png`` are made too (``progress`` tells
    of that, in crops).

    Raises:
        QdmrError: neither a run nor an evaluation there, or the page cannot be written.
    """
    place = _location(run)
    target = place.join(REPORT_FILE) if out is None else _location(out)
    page = _render(read_run(place), progress).encode("utf-8")
    local = target.local_path
    if local is None:
        target.write_bytes_atomic(page)
    else:
        # A misspelt folder should be told, not made.
        write_file_atomic(local, page)
    return target.uri


def _location(place: Location | Path | str) -> Location:
    return place if isinstance(place, Location) else open_location(place)


def _render(run: RunData, progress: Progress | None) -> str:
    evaluation = run.evaluation
    metric = figures.primary_metric(evaluation) if evaluation else None
    photographs, amplification = pictures.photographs(run, metric)
    stages = [_stage_section(run, stage) for stage in run.stages]
    drawn = [chart for stage in stages for chart in stage.charts + stage.housekeeping]
    codebook = codebook_section(run, progress)
    drawn += [codebook.chart] if codebook else []
    script = _asset("report.js")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            headline=figures.headline(evaluation),
            facts=_facts(run),
            tiles=figures.tiles(evaluation),
            table=figures.stage_table(evaluation),
            gains=_gains(evaluation, metric),
            photographs=photographs,
            places={photograph.name: index for index, photograph in enumerate(photographs)},
            viewer=_viewer_data(evaluation, photographs),
            per_photograph=figures.photograph_table(evaluation),
            differences=any(photograph.differences for photograph in photographs),
            amplification=amplification,
            full_scale=round(255 / amplification),
            map_colours=pictures.MAP_COLOURS,
            stages=stages,
            codebook=codebook,
            charts=[chart.data for chart in drawn],
            off=switched_off(run),
            made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            style=_asset("report.css"),
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Keys of the page's JSON keep the stages' order.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment


def _facts(run: RunData) -> list[tuple[str, str]]:
    """The line under the title."""
    facts = []
    if run.stages:
        facts.append(("Stages", " → ".join(label(stage) for stage in run.stages)))
    code = run.config.get("code_version") or run.environment.get("qdmr_ray")
    facts += [("Code", str(code))] if code else []
    device = run.environment.get("device")
    facts += [("Device", device)] if device else []
    seconds = sum(curves.seconds or 0.0 for curves in run.curves.values())
    facts += [("Training time", _duration(seconds))] if seconds else []
    return facts


def _gains(evaluation: Evaluation | None, metric: str | None) -> str:
    if evaluation is None or metric is None:
        return ""
    return charts.draw_gains(evaluation, metric, figures.metric_style(metric).full_label)


def _viewer_data(
    evaluation: Evaluation | None, photographs: list[pictures.Photograph]
) -> dict[str, Any]:
    """What the page's script needs to compare the photographs; JSON only."""
    if evaluation is None:
        return {"photographs": []}
    by_name = {image.name: image.figures for image in evaluation.per_image}
    styles = [(name, figures.metric_style(name)) for name in evaluation.metrics]
    return {
        "labels": {kind: label(kind) for kind in (INPUT, *evaluation.stages, GROUND_TRUTH)},
        "metrics": [style.full_label for _, style in styles],
        "photographs": [
            {
                "name": photograph.name,
                "width": photograph.width,
                "height": photograph.height,
                "scale": photograph.scale,
                "focus": photograph.focus,
                "pictures": photograph.pictures,
                "differences": photograph.differences,
                "figures": {
                    kind: [style.text(row.get(name)) for name, style in styles]
                    for kind, row in by_name[photograph.name].items()
                },
            }
            for photograph in photographs
        ],
    }


def _stage_section(run: RunData, stage: str) -> StageSection:
    curves = run.curves.get(stage)
    drawn = charts.draw_stage(curves) if curves else None
    facts = []
    if curves:
        facts.append(f"{curves.iterations:,} iteration{'s' * (curves.iterations != 1)}")
        facts += [_duration(curves.seconds)] if curves.seconds else []
    return StageSection(
        key=stage,
        label=label(stage),
        facts=", ".join(facts),
        charts=drawn.main if drawn else [],
        housekeeping=drawn.housekeeping if drawn else [],
        zero=drawn.zero if drawn else [],
        pictures=_training_pictures(run, stage),
    )


def _training_pictures(run: RunData, stage: str) -> list[TrainingPicture]:
    """The newest picture of each name, with its caption."""
    newest: dict[str, tuple[int, Location]] = {}
    for file in run.pictures(stage):
        stem = file.name.removesuffix(PICTURE_SUFFIX)
        match = SERIES_NAME.fullmatch(stem)
        name, iteration = (match["name"] or "", int(match["iteration"])) if match else ("", -1)
        name = name or (label(stage) if match else stem)
        if iteration >= newest.get(name, (-1, file))[0]:
            newest[name] = (iteration, file)
    shown = []
    for name, (iteration, file) in newest.items():
        try:
            uri, width, height = pictures.training_picture(file)
        except QdmrError as error:
            run.problems.append(str(error))
            continue
        caption = re.sub("[-_]+", " ", name).strip()
        caption = caption[:1].upper() + caption[1:]
        caption += f", iteration {iteration:,}" if iteration >= 0 else ""
        shown.append(TrainingPicture(uri=uri, width=width, height=height, caption=caption))
    return shown


def _duration(seconds: float) -> str:
    """``1 h 12 min``, ``3 min 5 s``: seconds say nothing about a run of hours."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    parts = [
        f"{value} {unit}" for value, unit in ((hour, "h"), (minute, "min"), (second, "s")) if value
    ]
    return " ".join(parts[:2]) or "under 1 s"
