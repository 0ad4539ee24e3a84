"""``evaluation.json`` for a report: its stages in the run's order, its origin in lines."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.evaluate.metrics.registry import METRICS
from qdmr_ray.evaluate.names import GROUND_TRUTH, INPUT, S2T, SOURCE_LENS
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.models.layout import EVALUATION_FILE
from qdmr_ray.storage import Location

# So many digits of a sha256 are enough to tell files apart by eye.
DIGEST_SHOWN, DIGEST_LENGTH = 12, 64


def read_evaluation(
    place: Location, order: Sequence[str], problems: list[str]
) -> Evaluation | None:
    """Returns the evaluation in ``place`` with the stages in ``order`` first; ``None`` where it is
    missing or damaged. A damaged one is added to ``problems``."""
    try:
        evaluation = Evaluation.read_if_there(place.join(EVALUATION_FILE))
    except QdmrError as error:
        problems.append(one_line(error))
        return None
    if evaluation is None:
        return None
    names = [*(name for name in order if name in evaluation.stages), *evaluation.stages]
    stages = {name: evaluation.stages[name] for name in dict.fromkeys(names)}
    return evaluation.model_copy(update={"stages": stages})


def last_stage(evaluation: Evaluation) -> str | None:
    """Returns the stage whose result is the run's, ``None`` where none was evaluated."""
    return next(reversed(evaluation.stages), None)


def picture_kinds(evaluation: Evaluation) -> list[str]:
    """Returns the names of a photograph's pictures in the order in which a page shows them."""
    lenses = [] if evaluation.gap is None else [SOURCE_LENS, S2T]
    return [INPUT, *lenses, *evaluation.stages, GROUND_TRUTH]


def metrics_of(evaluation: Evaluation) -> list[str]:
    """Returns every metric that the input or a stage has, in the file's order."""
    return list(dict.fromkeys(name for row in evaluation.means.values() for name in row))


def references(evaluation: Evaluation) -> list[str]:
    """Returns a sentence for each metric that compares with a file, without which values of two
    evaluations can't be compared."""
    known = [(metric.info, evaluation.reference(name)) for name, metric in METRICS.items()]
    return [f"{info.label} compares with {info.reference_label} in {f}." for info, f in known if f]


def origin(evaluation: Evaluation) -> dict[str, str]:
    """Returns what determined the values, and the software used: ``{"models.uda": "5e8a…"}``."""
    return _flat(evaluation.provenance.model_dump(exclude_defaults=True) | evaluation.environment)


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{head}{name}.")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            digest = len(text) == DIGEST_LENGTH and text.isalnum()
            flat[f"{head}{name}"] = f"{text[:DIGEST_SHOWN]}…" if digest else text
    return flat
