"""The page of a run, put together from the run's folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import label
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.report import charts, figures, pictures
from qdmr_ray.report.charts import Chart
from qdmr_ray.report.codebook import codebook_section
from qdmr_ray.report.document import duration, located, render, write_page
from qdmr_ray.report.evaluation import origin, references
from qdmr_ray.report.run_folder import PICTURE_SUFFIX, RunData, read_run, switched_off
from qdmr_ray.report.viewer import viewer_content
from qdmr_ray.storage import Location

# Training wrote such a picture more than once: name-000200.png or name_000200.png.
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
    """The page's section on one stage's training."""

    key: str
    label: str
    facts: str
    charts: list[Chart]
    housekeeping: list[Chart]
    zero: list[str]
    pictures: list[TrainingPicture]


def run_page(
    run: Location | Path | str,
    out: Location | Path | str | None = None,
) -> str:
    """Writes the report of a run to ``out`` (``RUN/report.html``); returns its path or ``s3://…``.
    ``run`` is a run folder or a folder with an evaluation alone, here or in a store. Anything else
    may be missing: the page then names it, and the command that makes it.

    Raises:
        QdmrError: neither a run nor an evaluation is there, or the page cannot be written.
    """
    place = located(run)
    return write_page(_render(read_run(place)), place, out)


def _render(run: RunData) -> str:
    evaluation = run.evaluation
    metric = figures.primary_metric(evaluation) if evaluation else None
    photographs, amplification = pictures.photographs(run, metric)
    stages = [_stage_section(run, stage) for stage in run.stages]
    codebook = codebook_section(run)
    return render(
        "report.html.j2",
        styles=["report.css"],
        scripts=["report.js"],
        run=run,
        headline=figures.headline(evaluation),
        facts=_facts(run),
        references=references(evaluation) if evaluation else [],
        origin=origin(evaluation) if evaluation else {},
        tiles=figures.tiles(evaluation),
        table=figures.stage_table(evaluation),
        gains=_gains(evaluation, metric),
        places={photograph.name: index for index, photograph in enumerate(photographs)},
        per_photograph=figures.photograph_table(evaluation),
        stages=stages,
        codebook=None if isinstance(codebook, str) else codebook,
        codebook_missing=codebook if isinstance(codebook, str) else "",
        off=switched_off(run),
        **viewer_content(evaluation, photographs, amplification),
    )


def _facts(run: RunData) -> list[tuple[str, str]]:
    """Returns the line under the title."""
    facts = []
    if run.stages:
        facts.append(("Stages", " → ".join(label(stage) for stage in run.stages)))
    code = run.config.get("code_version") or run.environment.get("qdmr_ray")
    facts += [("Code", str(code))] if code else []
    device = run.environment.get("device")
    facts += [("Device", device)] if device else []
    seconds = sum(curves.seconds or 0.0 for curves in run.curves.values())
    facts += [("Training time", duration(seconds))] if seconds else []
    return facts


def _gains(evaluation: Evaluation | None, metric: str | None) -> Chart | None:
    if evaluation is None or metric is None:
        return None
    return charts.draw_gains(evaluation, metric, metric_info(metric).full_label)


def _stage_section(run: RunData, stage: str) -> StageSection:
    curves = run.curves.get(stage)
    drawn = charts.draw_stage(curves) if curves else None
    facts = []
    if curves:
        facts.append(f"{curves.iterations:,} iteration{'s' * (curves.iterations != 1)}")
        facts += [duration(curves.seconds)] if curves.seconds else []
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
    """Returns the newest picture of each name, with its caption."""
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
