"""The page of a run, put together from the run's folder."""

import re
from typing import Any

from qdmr_ray.evaluate.names import label
from qdmr_ray.models.layout import EVALUATION_FILE, PICTURES_FOLDER
from qdmr_ray.report import charts, pictures, summary
from qdmr_ray.report.codebook import codebook_section
from qdmr_ray.report.document import duration, render
from qdmr_ray.report.evaluation import origin, references
from qdmr_ray.report.gap import gap_section
from qdmr_ray.report.run_folder import RunData, noted, switched_off
from qdmr_ray.report.viewer import viewer_content
from qdmr_ray.storage import Location

PICTURE_SUFFIX = ".png"
# Training wrote such a picture more than once: name-000200.png or name_000200.png.
SERIES_NAME = re.compile(r"(?:(?P<name>.+)[-_])?(?P<iteration>\d+)")


def run_page(run: RunData) -> str:
    """Returns the page of a run, or of an evaluation alone. A part that cannot be shown is named
    under the run's problems."""
    evaluated: dict[str, Any] = {}
    with noted(run.problems, EVALUATION_FILE):
        evaluated = _evaluation_section(run)
    if not evaluated:
        run.evaluation = None
        evaluated = _evaluation_section(run)
    codebook: dict[str, Any] | str | None = None
    with noted(run.problems, "the codebook"):
        codebook = codebook_section(run)
    gap: dict[str, Any] | None = None
    with noted(run.problems, "the gap"):
        gap = gap_section(run.evaluation)
    facts: list[tuple[str, str]] = []
    with noted(run.problems, "the line of facts"):
        facts = _facts(run)
    stages = []
    for stage in run.stages:
        with noted(run.problems, f"the training of {stage}"):
            stages.append(_stage_section(run, stage))
    return render(
        "report.html.j2",
        styles=["report.css"],
        scripts=["report.js"],
        run=run,
        facts=facts,
        stages=stages,
        gap=gap,
        codebook=None if isinstance(codebook, str) else codebook,
        codebook_missing=codebook if isinstance(codebook, str) else "",
        off=switched_off(run),
        **evaluated,
    )


def _evaluation_section(run: RunData) -> dict[str, Any]:
    """Returns the template's variables for the evaluation and its photographs."""
    evaluation = run.evaluation
    metric = summary.primary_metric(evaluation) if evaluation else None
    photographs, amplification = pictures.photographs(run, metric)
    return {
        "headline": summary.headline(evaluation),
        "references": references(evaluation) if evaluation else [],
        "origin": origin(evaluation) if evaluation else {},
        "tiles": summary.tiles(evaluation),
        "table": summary.stage_table(evaluation),
        "gains": charts.draw_gains(evaluation, metric) if evaluation and metric else None,
        "places": {photograph.name: index for index, photograph in enumerate(photographs)},
        "per_photograph": summary.photograph_table(evaluation),
        **viewer_content(evaluation, photographs, amplification),
    }


def _facts(run: RunData) -> list[tuple[str, str]]:
    """Returns the line under the title."""
    seconds = sum(curves.seconds or 0.0 for curves in run.curves.values())
    known = {
        "Stages": " → ".join(map(label, run.stages)),
        "Code": run.config.get("code_version") or run.environment.get("qdmr_ray"),
        "Device": run.environment.get("device"),
        "Training time": duration(seconds) if seconds else "",
    }
    return [(name, str(value)) for name, value in known.items() if value]


def _stage_section(run: RunData, stage: str) -> dict[str, Any]:
    """Returns the template's variables for one stage's training."""
    curves = run.curves.get(stage)
    drawn: dict[str, Any] = {"charts": [], "housekeeping": [], "zero": []}
    facts = []
    if curves:
        drawn = charts.draw_stage(curves)
        facts.append(f"{curves.iterations:,} iteration{'s' * (curves.iterations != 1)}")
        facts += [duration(curves.seconds)] if curves.seconds else []
    return {
        "key": stage,
        "label": label(stage),
        "facts": ", ".join(facts),
        "pictures": _training_pictures(run, stage),
        **drawn,
    }


def _training_pictures(run: RunData, stage: str) -> list[dict[str, Any]]:
    """Returns the newest picture of each name as a data URI, with its size and caption."""
    newest: dict[str, tuple[int, Location]] = {}
    files: list[Location] = []
    with noted(run.problems):
        files = run.place.join(stage, PICTURES_FOLDER).list()
    for file in (file for file in files if file.name.endswith(PICTURE_SUFFIX)):
        stem = file.name.removesuffix(PICTURE_SUFFIX)
        match = SERIES_NAME.fullmatch(stem)
        name = (match["name"] or label(stage)) if match else stem
        iteration = int(match["iteration"]) if match else -1
        if iteration >= newest.get(name, (-1, file))[0]:
            newest[name] = (iteration, file)
    shown = []
    for name, (iteration, file) in newest.items():
        embedded = pictures.embedded_picture(file, run.problems)
        if embedded:
            uri, width, height = embedded
            caption = re.sub("[-_]+", " ", name).strip()
            caption = caption[:1].upper() + caption[1:]
            caption += f", iteration {iteration:,}" if iteration >= 0 else ""
            shown.append({"uri": uri, "width": width, "height": height, "caption": caption})
    return shown
