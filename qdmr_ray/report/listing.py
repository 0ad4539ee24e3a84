"""The runs and sweeps that lie in a folder, in progress or ended, and how far each has come."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.evaluate.sweep_file import FINISHED, RUNNING, STOPPED, SWEEP_FILE, SweepFile, finite
from qdmr_ray.models.files import read_description
from qdmr_ray.models.layout import CONFIG_FILE, FINAL_FOLDER
from qdmr_ray.models.position import position
from qdmr_ray.models.stage_store import CLAIMS_FOLDER
from qdmr_ray.parsing import yaml_mapping
from qdmr_ray.patience import CLAIM_STALE
from qdmr_ray.report.run_folder import named_stages
from qdmr_ray.storage import Location
from qdmr_ray.storage.claims import Claims

# What validations and training log, the most telling first.
_TELLING = ("validation/psnr", "source/l1", "target/l1")
# Folders of runs lie so deep below the one that is listed: runs/sweeps/NAME is two.
_DEPTH = 2
RUN, SWEEP = "run", "sweep"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A run or a sweep. ``state`` is ``running``, ``finished``, ``stopped`` (the same command goes
    on), ``failed`` or ``unreadable``, with the reason as ``error``. Of a sweep ``iteration`` and
    ``iterations`` count trials. ``updated`` is in seconds since 1970."""

    name: str
    kind: str
    place: str
    state: str
    stage: str = ""
    iteration: int | None = None
    iterations: int | None = None
    metric: str = ""
    value: float | None = None
    updated: float | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON holds them."""
        return {**vars(self), "value": finite(self.value)}


def listed(storage: Location) -> list[Listed]:
    """Returns the runs and sweeps below ``storage``, the last updated first; what can't be read is
    among them. Raises QdmrError if the folder itself can't be read."""
    found = list(_below(storage, storage, _DEPTH))
    return sorted(found, key=lambda one: -(one.updated or 0.0))


def _below(storage: Location, folder: Location, depth: int) -> Iterator[Listed]:
    for place in folder.list():
        names = {child.name for child in place.list()} if place.is_folder() else set()
        if SWEEP_FILE in names:
            yield _read(storage, place, SWEEP)
        elif CONFIG_FILE in names:
            yield _read(storage, place, RUN)
        elif depth > 1 and not place.name.startswith("."):
            yield from _below(storage, place, depth - 1)


def _read(storage: Location, place: Location, kind: str) -> Listed:
    name = place.uri.removeprefix(f"{storage.uri.rstrip('/')}/")
    known: dict[str, Any] = {"name": name, "kind": kind, "place": place.uri}
    try:
        return Listed(**known, **(_sweep(place) if kind == SWEEP else _run(storage, place)))
    except QdmrError as error:
        return Listed(**known, state="unreadable", error=one_line(error))


def _sweep(place: Location) -> dict[str, Any]:
    content = SweepFile.read(place.join(SWEEP_FILE))
    best = content.trial(content.best)
    metrics, values = [metric.name for metric in content.metrics], best and best.values
    first = [t for t in content.trials if not t.is_repeat]
    return {
        "state": _state(place, content.state),
        "stage": "trials",
        "iteration": sum(trial.has_ended for trial in first),
        "iterations": content.planned or len(first),
        "metric": metrics[0] if metrics else "",
        "value": values[0] if values else None,
        "updated": content.updated or _last_claim(place),
        "error": content.error or "",
    }


def _run(storage: Location, place: Location) -> dict[str, Any]:
    file = place.join(CONFIG_FILE)
    config = yaml_mapping(file.read_bytes(), file.uri)
    stages = named_stages(config)
    done = [s for s in stages if read_description(place.join(s, FINAL_FOLDER)) is not None]
    where = position(place, stages, lambda uri: _inside(storage, uri))
    found: dict[str, Any] = {"state": _state(place, FINISHED if done == stages else RUNNING)}
    if where is not None:
        settings = config.get("stages")
        own = settings.get(where.stage) if isinstance(settings, dict) else None
        found["stage"] = where.stage
        found["iteration"] = where.line.iteration if where.line else 0
        if isinstance(own, dict) and isinstance(own.get("iterations"), int):
            found["iterations"] = own["iterations"]
        if where.line is not None:
            metrics = where.line.metrics
            found["metric"] = next((name for name in _TELLING if name in metrics), "")
            found["value"] = metrics.get(found["metric"])
            found["updated"] = where.line.time
    found.setdefault("updated", _last_claim(place))
    return found


def _inside(storage: Location, uri: str) -> Location | None:
    """Returns the place of a shared store that lies in ``storage``. Another is not opened: a folder
    from elsewhere must not say what this command connects to."""
    start = f"{storage.uri.rstrip('/')}/"
    parts = uri.removeprefix(start).split("/")
    return storage.join(*parts) if uri.startswith(start) and ".." not in parts else None


def _state(place: Location, written: str) -> str:
    """Returns the state that the files tell, ``stopped`` where nobody is at work any more."""
    if written != RUNNING:
        return written
    claims = Claims(place.join(CLAIMS_FOLDER))
    holder, held = claims.holder(), claims.is_held()
    if holder is None or held is False:
        return STOPPED
    # A holder on another machine can't be looked up; its clock may differ by a little.
    fresh = time.time() - holder["time"] < CLAIM_STALE.seconds
    return RUNNING if held or fresh else STOPPED


def _last_claim(place: Location) -> float | None:
    return place.join(CLAIMS_FOLDER).newest() or None
