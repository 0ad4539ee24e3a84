"""Reads a run folder for its report; its settings or an evaluation have to be there. A part that is
missing or broken becomes a line in ``RunData.problems`` instead of an error, since a report is
wanted most for the run that went wrong."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qdmr_ray.errors import QdmrError, one_line, reason
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.evaluate.sweep_file import finite
from qdmr_ray.models.documents import Environment, MetricsLine, Notes, parse_metrics
from qdmr_ray.models.layout import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    NOTES_FILE,
    PICTURES_FOLDER,
)
from qdmr_ray.parsing import parse_yaml
from qdmr_ray.report.evaluation import read_evaluation
from qdmr_ray.stages import STAGES
from qdmr_ray.storage import Location
from qdmr_ray.storage.document import Document

# These settings weigh a loss term; at 0 the term is off.
TERMS = {"l1", "lpips", "gan", "codebook", "semantic", "s2t_codebook", "target_codebook"}
TERMS |= {"feature_gan", "target_feature"}
D = TypeVar("D", bound=Document)


@dataclass(frozen=True, kw_only=True)
class StageCurves:
    """``metrics.jsonl`` of one stage: per scalar its iterations and values, in order; a value that
    is not finite is ``None``. ``seconds`` is the time from the first to the last line, ``None`` if
    unknown."""

    scalars: dict[str, tuple[list[int], list[float | None]]]
    iterations: int
    seconds: float | None


@dataclass(kw_only=True)
class RunData:
    """A run, or an evaluation alone, for its report; ``problems`` names what could not be read, and
    ``config_text`` is empty where there are no settings."""

    place: Location
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
        return str(self.config.get("name") or self.place.name)


def read_run(place: Location) -> RunData:
    """Reads the run folder ``place``, or a folder with nothing but an evaluation. Raises QdmrError
    if neither ``config.yaml`` nor ``evaluation.json`` is there, or the first is no mapping of
    settings."""
    config, text = _read_config(place)
    run = RunData(place=place, config=config, config_text=text)
    environment = _read_document(Environment, place.join(ENVIRONMENT_FILE), run.problems)
    run.environment = {k: v for k, v in vars(environment or Environment()).items() if v}
    notes = _read_document(Notes, place.join(NOTES_FILE), run.problems)
    run.notes = [*notes.notes] if notes else []
    with noted(run.problems, "the list of stages"):
        run.stages = _stages(run)
    for stage in run.stages:
        with noted(run.problems, f"{stage}/{METRICS_FILE}"):
            if (curves := _read_curves(run, stage)) is not None:
                run.curves[stage] = curves
    with noted(run.problems, EVALUATION_FILE):
        run.evaluation = read_evaluation(place, run.stages, run.problems)
    return run


def _read_config(place: Location) -> tuple[dict[str, Any], str]:
    file = place.join(CONFIG_FILE)
    if file.size() is None:
        if place.join(EVALUATION_FILE).size() is None:
            raise QdmrError(
                f"{place.uri} is not a run folder: it has no {CONFIG_FILE} and no "
                f"{EVALUATION_FILE}; name the folder that qdmr train, qdmr demo or qdmr evaluate "
                "wrote"
            )
        return {}, ""
    try:
        text = file.read_bytes().decode("utf-8")
        config = parse_yaml(text)
    except ValueError as error:
        raise QdmrError(f"{file.uri} cannot be read ({one_line(error)}): mend it") from error
    if not isinstance(config, dict):
        raise QdmrError(f"{file.uri} must hold a mapping of settings: mend it")
    return config, text


def _read_document(kind: type[D], file: Location, problems: list[str]) -> D | None:
    """Returns the document in ``file``, ``None`` where it is missing or broken; adds a broken one
    to ``problems``."""
    try:
        return kind.read_if_there(file)
    except Exception as error:
        problems.append(f"{file.name} cannot be read ({one_line(error)})")
        return None


@contextmanager
def noted(problems: list[str], part: str = "") -> Iterator[None]:
    """Adds a QdmrError to ``problems`` instead of raising it; with the name of a ``part`` of the
    page, any error, since the rest of the page has to be shown whatever that part holds."""
    try:
        yield
    except QdmrError as error:
        problems.append(one_line(error))
    except Exception as error:
        if not part:
            raise
        problems.append(f"{part} cannot be shown ({reason(error)})")


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a number, which true and false aren't."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def switched_off(run: RunData) -> list[str]:
    """Returns the run's loss terms with weight 0, as ``stages.vqgan.semantic``."""
    sections = run.config.get("stages")
    known = sections if isinstance(sections, Mapping) else {}
    return [
        f"stages.{stage}.{name}"
        for stage in run.stages
        if isinstance(known.get(stage), Mapping)
        for name, value in known[stage].items()
        if name in TERMS and is_number(value) and value == 0
    ]


def named_stages(config: Mapping[str, Any]) -> list[str]:
    """Returns the stages that settings name, whatever these hold. A name is a folder directly in
    the run, not a path that leads out of it."""
    configured = config.get("run")
    names = map(str, configured if isinstance(configured, list) else [])
    return [n for n in dict.fromkeys(names) if n not in ("", ".", "..") and not {*"/\0"} & {*n}]


def _stages(run: RunData) -> list[str]:
    """Returns the stages of the settings in their order, then others that have left files."""
    named = named_stages(run.config)
    files = run.place.file_sizes()
    found = []
    for folder in run.place.list():
        if folder.name not in files and folder.name not in named:
            with noted(run.problems):
                if {METRICS_FILE, PICTURES_FOLDER} & {child.name for child in folder.list()}:
                    found.append(folder.name)
    order = [*STAGES]
    return [*named, *(n for n in order if n in found), *(n for n in found if n not in order)]


def _read_curves(run: RunData, stage: str) -> StageCurves | None:
    file = run.place.join(stage, METRICS_FILE)
    lines, broken = list[MetricsLine](), 0
    with noted(run.problems):
        if file.size() is not None:
            lines, broken = parse_metrics(file.read_bytes())
    if broken:
        run.problems.append(f"{stage}/{METRICS_FILE}: {broken} unreadable line(s) left out")
    if not lines:
        return None
    scalars: dict[str, tuple[list[int], list[float | None]]] = {}
    for line in lines:
        for name, value in line.metrics.items():
            iterations, values = scalars.setdefault(name, ([], []))
            iterations.append(line.iteration)
            values.append(finite(value))
    times = [line.time for line in lines if line.time]
    return StageCurves(
        scalars=scalars,
        iterations=lines[-1].iteration,
        seconds=max(times) - min(times) if len(times) > 1 else None,
    )
