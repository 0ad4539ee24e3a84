"""How far a run has come, by the files that its stages leave while they train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qdmr_ray.models.documents import Begun, MetricsLine, parse_metrics
from qdmr_ray.models.layout import BEGUN_FILE, METRICS_FILE
from qdmr_ray.storage import Location

# The last lines of a log lie in so many bytes at its end.
_TAIL_BYTES = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Position:
    """The newest line of the last ``stage`` that has begun to log; without one, ``line`` is None
    and the stage the last that has begun."""

    stage: str
    line: MetricsLine | None


def position(
    run: Location, stages: Sequence[str], opened: Callable[[str], Location | None]
) -> Position | None:
    """Returns where the run in the folder ``run`` is in its ``stages``, None before the first.
    ``opened`` opens the address of a stage that is trained in a shared store, or declines by None.
    Raises QdmrError where the folder can't be read."""
    for stage in reversed(stages):
        begun = Begun.read_if_there(run.join(stage, BEGUN_FILE))
        line = _newest_line(run.join(stage, METRICS_FILE))
        if line is None and begun is not None and begun.store is not None:
            shared = opened(begun.store)
            line = None if shared is None else _newest_line(shared.join(stage, METRICS_FILE))
        if line is not None or begun is not None:
            return Position(stage=stage, line=line)
    return None


def _newest_line(file: Location) -> MetricsLine | None:
    size = file.size()
    if not size:
        return None
    start = max(0, size - _TAIL_BYTES)
    # The first of these lines may be cut off, and is then left out as unreadable.
    lines, _ = parse_metrics(file.read_piece(start)[0])
    return lines[-1] if lines else None
