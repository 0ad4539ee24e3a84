"""The typed files of a run folder that training writes and reports, sweeps and resumed runs read.

``models.files`` has the weights and their description, ``qdmr_ray.config`` has ``config.yaml``.
This module needs pydantic; a network can be loaded without it.
"""

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location
from qdmr_ray.storage.document import Document


class Begun(Document):
    """``begun.json`` records, before a stage has a result, the settings and data that it was begun
    with; ``store`` is the folder of the shared store that trains the stage, if any."""

    digest: str
    store: str | None = None


class Environment(Document):
    """``environment.json`` describes what a run was last started on; missing entries are empty.
    ``diff`` is the digest of the changes since ``commit``."""

    qdmr_ray: str = ""
    commit: str = ""
    branch: str = ""
    diff: str = ""
    python: str = ""
    torch: str = ""
    ray: str = ""
    platform: str = ""
    cluster: str = ""
    device: str = ""
    workers: str = ""


class Notes(Document):
    """``notes.json`` holds sentences about a run that its report shows."""

    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Self:
        """Reads the document; the file of an older run is the bare list of sentences."""
        return super().from_dict({"notes": values} if isinstance(values, list) else values, source)


class MetricsLine(Document):
    """A line of ``metrics.jsonl``: ``iteration``, ``time`` (seconds since 1970) and beside them the
    metrics, with null for one that is not finite. No line repeats the file's format."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, int | float | None]

    iteration: int
    time: float | None = None

    @classmethod
    def of(cls, iteration: int, time: float, metrics: Mapping[str, float]) -> Self:
        """Returns the line to write for ``metrics``."""
        return cls.model_validate({**metrics, "iteration": iteration, "time": round(time, 3)})

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics by name, with NaN for null."""
        values = self.__pydantic_extra__.items()
        return {name: math.nan if value is None else value for name, value in values}

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values as JSON holds them."""
        return {name: value for name, value in super().to_dict().items() if name != "format"}


def parse_metrics(data: bytes) -> tuple[list[MetricsLine], int]:
    """Returns the lines of a ``metrics.jsonl`` by iteration, and the number of unreadable lines.

    A resumed run may have logged an iteration twice, of which the later line counts; a crash may
    have cut the last line short.
    """
    found: dict[int, MetricsLine] = {}
    broken = 0
    for text in filter(str.strip, data.decode(errors="replace").splitlines()):
        try:
            line = MetricsLine.parse(text, "metrics")
        except QdmrError:
            broken += 1
        else:
            found[line.iteration] = line
    return [found[iteration] for iteration in sorted(found)], broken


def read_metrics(file: Location) -> list[MetricsLine]:
    """Returns the readable lines of ``file``, none where it doesn't exist; raises QdmrError where
    the place can't be read."""
    return parse_metrics(file.read_bytes())[0] if file.exists() else []
