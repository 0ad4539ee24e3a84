"""What a run folder holds, read for its report: nothing but ``config.yaml`` has to be there.

A part that is missing or broken becomes a line in ``RunData.problems`` instead of an error, since
a report is wanted most for the run that went wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qdmr_ray.errors import QdmrError

INPUT = "input"
GROUND_TRUTH = "ground_truth"
STAGE_LABELS = {
    INPUT: "Aberrated input",
    GROUND_TRUTH: "Ground truth",
    "vqgan": "VQGAN",
    "base": "Base",
    "uda": "UDA",
    "source_only": "Source-only",
}
# Settings that weigh a loss term; at 0 the term is off.
TERMS = frozenset(
    {
        "l1",
        "lpips",
        "gan",
        "codebook",
        "semantic",
        "s2t_codebook",
        "target_codebook",
        "feature_gan",
        "target_feature",
    }
)
# Keys of a metrics.jsonl line that are no scalars of the training.
_LINE_KEYS = frozenset({"iteration", "time"})

Figures = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class StageCurves:
    """``metrics.jsonl`` of one stage: per scalar its iterations and values, in order.

    A value that is not finite is ``None``. ``seconds`` is the time between the first and the last
    line, ``None`` where it isn't known.
    """

    scalars: dict[str, tuple[list[int], list[float | None]]]
    iterations: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """One held-out photograph: its figures by stage (``input`` among them)."""

    name: str
    figures: dict[str, Figures]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """``evaluation.json``; ``figures`` are means by stage, ``input`` first."""

    images: int
    figures: dict[str, Figures]
    per_image: list[ImageResult]

    @property
    def stages(self) -> list[str]:
        """The stages that were evaluated, in the run's order."""
        return [stage for stage in self.figures if stage != INPUT]

    @property
    def metrics(self) -> list[str]:
        """Every metric that any stage has, in the file's order."""
        return list(dict.fromkeys(name for row in self.figures.values() for name in row))


@dataclass(kw_only=True)
class RunData:
    """A run folder as its report shows it; ``problems`` says what could not be read."""

    path: Path
    config: dict[str, Any]
    config_text: str
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    curves: dict[str, StageCurves] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name in its settings, else the folder's."""
        return str(self.config.get("name") or self.path.resolve().name)

    def pictures(self, stage: str) -> list[Path]:
        """The pictures that the stage's training left, sorted by name."""
        return sorted((self.path / stage / "pictures").glob("*.png"))


def label(stage: str) -> str:
    """The name that people read: ``uda`` becomes ``UDA``."""
    return STAGE_LABELS.get(stage, stage.replace("_", " ").capitalize())


def read_run(path: Path) -> RunData:
    """Reads the run folder ``path``.

    Raises:
        QdmrError: no folder, or no readable ``config.yaml`` in it.
    """
    config_file = path / "config.yaml"
    try:
        text = config_file.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise QdmrError(
            f"{path} is not a run folder: it has no config.yaml; name the folder that qdmr train "
            "or qdmr demo wrote"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise QdmrError(f"{config_file} cannot be read ({_one_line(error)}): mend it") from error
    if not isinstance(config, dict):
        raise QdmrError(f"{config_file} must hold a mapping of settings: mend it")
    run = RunData(path=path, config=config, config_text=text)
    environment = _read_json(run, "environment.json", dict)
    run.environment = {str(key): str(value) for key, value in (environment or {}).items()}
    run.notes = [str(note) for note in _read_json(run, "notes.json", list) or []]
    run.stages = _stages(run)
    for stage in run.stages:
        curves = _read_curves(run, stage)
        if curves is not None:
            run.curves[stage] = curves
    run.evaluation = _read_evaluation(run)
    return run


def switched_off(run: RunData) -> list[str]:
    """Names of the run's loss terms whose weight is 0, as in ``stages.vqgan.semantic``."""
    sections = run.config.get("stages")
    if not isinstance(sections, Mapping):
        return []
    return [
        f"stages.{stage}.{name}"
        for stage in run.stages
        if isinstance(sections.get(stage), Mapping)
        for name, value in sections[stage].items()
        if name in TERMS and _is_figure(value) and value == 0
    ]


def _stages(run: RunData) -> list[str]:
    """The stages that the settings run, in their order, then whatever else has left something."""
    configured = run.config.get("run")
    names = [str(name) for name in configured] if isinstance(configured, list) else []
    order = list(STAGE_LABELS)
    found = {
        file.parent.name
        for pattern in ("*/metrics.jsonl", "*/pictures")
        for file in run.path.glob(pattern)
    }
    known = sorted(found, key=lambda name: (name not in order, name in order and order.index(name)))
    return list(dict.fromkeys([*filter(_is_plain_name, names), *known]))


def _read_curves(run: RunData, stage: str) -> StageCurves | None:
    file = run.path / stage / "metrics.jsonl"
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        run.problems.append(f"{stage}/metrics.jsonl cannot be read ({error.strerror})")
        return None
    records: dict[int, dict[str, Any]] = {}
    broken = 0
    for line in filter(str.strip, lines):
        try:
            record = json.loads(line)
            # A resumed run goes through its last iterations again: the newest line counts.
            records[int(record["iteration"])] = record
        except (ValueError, TypeError, KeyError, OverflowError):
            broken += 1
    if broken:
        run.problems.append(f"{stage}/metrics.jsonl: {broken} unreadable line(s) left out")
    if not records:
        return None
    scalars: dict[str, tuple[list[int], list[float | None]]] = {}
    for iteration in sorted(records):
        for key, value in records[iteration].items():
            if key not in _LINE_KEYS and (value is None or _is_figure(value)):
                iterations, values = scalars.setdefault(key, ([], []))
                iterations.append(iteration)
                values.append(_finite(value))
    times = [record["time"] for record in records.values() if _finite(record.get("time"))]
    return StageCurves(
        scalars=scalars,
        iterations=max(records),
        seconds=max(times) - min(times) if len(times) > 1 else None,
    )


def _read_evaluation(run: RunData) -> Evaluation | None:
    content = _read_json(run, "evaluation.json", dict)
    if content is None:
        return None
    stages = content.get("stages")
    stages = stages if isinstance(stages, dict) else {}
    ordered = [name for name in run.stages if name in stages]
    ordered += [name for name in stages if name not in ordered]
    named = [(INPUT, content.get(INPUT)), *((name, stages[name]) for name in ordered)]
    figures = {name: _figures(row) for name, row in named if isinstance(row, dict)}
    rows = content.get("per_image")
    per_image = [
        ImageResult(
            name=str(row.get("name", f"image {index + 1}")),
            figures={name: _figures(row[name]) for name in figures if _has(row, name)},
        )
        for index, row in enumerate(rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    ]
    if not figures:
        run.problems.append("evaluation.json holds no figures")
        return None
    images = content.get("images")
    count = images if isinstance(images, int) else len(per_image)
    return Evaluation(images=count, figures=figures, per_image=per_image)


def _read_json(run: RunData, name: str, kind: type) -> Any:
    """The content of RUN/``name``; ``None`` where it is missing, broken or of another kind."""
    try:
        content = json.loads((run.path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        run.problems.append(f"{name} cannot be read ({_one_line(error)})")
        return None
    if isinstance(content, kind):
        return content
    run.problems.append(f"{name} is no JSON {'list' if kind is list else 'object'}")
    return None


def _has(row: Mapping[str, Any], name: str) -> bool:
    return isinstance(row.get(name), dict)


def _figures(row: Mapping[str, Any]) -> Figures:
    return {
        str(name): None if value is None or math.isnan(value) else float(value)
        for name, value in row.items()
        if value is None or _is_figure(value)
    }


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    return float(value) if _is_figure(value) and math.isfinite(value) else None


def _is_plain_name(name: str) -> bool:
    """A folder directly inside the run, not a path that leads out of it."""
    return name not in ("", ".", "..") and Path(name).name == name


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
