"""The typed files of a run folder that training writes and reports, sweeps and resumed runs read.

Weights and their description (``models.files``) and ``config.yaml`` are not among them. This module
needs pydantic; a network can be loaded without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location
from qdmr_ray.storage.document import Document


class Begun(Document):
    """``begun.json``: the settings and data that a stage was begun with, before it has a result.

    ``store`` is the folder of the shared store that trains the stage, where there is one.
    """

    digest: str
    store: str | None = None


class Environment(Document):
    """``environment.json``: what a run was last started on; empty where a file doesn't say."""

    qdmr_ray: str = ""
    python: str = ""
    torch: str = ""
    ray: str = ""
    platform: str = ""
    cluster: str = ""
    device: str = ""
    workers: str = ""


class Notes(Document):
    """``notes.json``: sentences about a run that its report shows."""

    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Self:
        """As of every document; older runs hold a list of the sentences alone."""
        return super().from_dict({"notes": values} if isinstance(values, list) else values, source)


class MetricsLine(Document):
    """A line of ``metrics.jsonl``: ``iteration``, ``time`` (seconds since 1970) and the metrics.

    The metrics stand beside the two, with null for one that is not finite, and no line repeats the
    file's format.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, int | float | None]

    iteration: int
    time: float | None = None

    @classmethod
    def of(cls, iteration: int, time: float, metrics: Mapping[str, float]) -> Self:
        """The line that is written for ``metrics``."""
        return cls.model_validate({**metrics, "iteration": iteration, "time": round(time, 3)})

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics by name, with NaN for null."""
        values = self.__pydantic_extra__.items()
        return {name: math.nan if value is None else value for name, value in values}

    def to_dict(self) -> dict[str, Any]:
        """Plain values as JSON holds them."""
        values = super().to_dict()
        del values["format"]
        return values


def parse_metrics(data: bytes) -> tuple[list[MetricsLine], int]:
    """The lines of a ``metrics.jsonl`` by iteration, and the number of lines that can't be read.

    A run that goes on may have logged an iteration twice: the later line counts. Its last line may
    have been cut short by a crash.
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
    """The readable lines of ``file``, none where it doesn't exist.

    Raises:
        QdmrError: the place can't be read.
    """
    return parse_metrics(file.read_bytes())[0] if file.exists() else []
