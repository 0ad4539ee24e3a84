"""The typed files of an evaluation: ``evaluation.json``, and the lines of its journal.

    evaluation = Evaluation.read(open_location("runs/demo").join(EVALUATION_FILE))
    evaluation.stages["uda"]["psnr"], evaluation.statistics["uda"]["psnr"].ci95

``evaluate`` writes these documents; ``compare``, reports and sweeps read them. A value is None
(null) where it is not finite: an infinite PSNR means that two images are identical. A metric that
was not measured has no key.
"""

from typing import Self

from pydantic import ConfigDict, Field

from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import INPUT
from qdmr_ray.storage.document import Document, FileName, Part

# Values by metric.
Values = dict[str, float | None]
# Values by image (`input` or a stage, which names its pictures), then by metric.
ImageValues = dict[FileName, Values]


class Statistics(Part):
    """A metric over ``n`` photographs; ``ci95`` is the mean's 95 % interval."""

    mean: float | None
    median: float | None
    ci95: tuple[float, float] | None
    n: int


class FailedPhotograph(Part):
    """A photograph that could not be read, restored, measured or written, and why."""

    name: str
    reason: str


class LeftOut(Part):
    """A photograph that doesn't count in the means of one metric, and why."""

    name: str
    metric: str
    reason: str


class PhotographResult(Part):
    """A photograph's values: ``{"name": …, "input": {…}, "uda": {…}}``."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: ImageValues

    name: str

    @classmethod
    def of(cls, name: str, values: ImageValues) -> Self:
        """Returns the result of the photograph ``name``."""
        return cls.model_validate({"name": name, **values})

    @property
    def values(self) -> ImageValues:
        """The values of the input and of each stage."""
        return self.__pydantic_extra__


class Provenance(Part):
    """Everything that determines the values, and ``digest``, its SHA-256.

    ``test_set`` is the digest of the photographs, ``models`` has that of each stage's weights,
    ``validation_images`` lists the photographs that were left out since the training was judged on
    them. The file that a metric compares with is named under the metric's own key.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    test_set: str | None = None
    models: dict[str, str] = Field(default_factory=dict)
    border: int | None = None
    luma: bool | None = None
    metrics: tuple[str, ...] = ()
    code_version: str = ""
    validation_images: tuple[int, ...] = ()
    digest: str = ""


class Evaluation(Document):
    """``evaluation.json``: means over ``images`` photographs, and each one's own values.

    A metric's means are over the same photographs for the input and every stage: those that have a
    finite value for each. ``left_out`` names the others, and ``statistics`` tells how many counted.
    ``environment`` names versions and devices that computed the values.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    images: int
    input: Values
    stages: ImageValues
    statistics: dict[str, dict[str, Statistics]] = Field(default_factory=dict)
    failed: tuple[FailedPhotograph, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    provenance: Provenance = Provenance()
    environment: dict[str, str] = Field(default_factory=dict)
    per_image: tuple[PhotographResult, ...]

    @property
    def means(self) -> ImageValues:
        """The means of the input, then of every stage."""
        return {INPUT: self.input, **self.stages}

    def reference(self, metric: str) -> str:
        """The file that the metric compared with; empty where it needs none or none is recorded."""
        key = metric_info(metric).reference
        return str((self.model_extra or {}).get(key) or "")


class JournalHead(Document):
    """The first line of a journal, which identifies its evaluation."""

    digest: str


class Judged(Document):
    """A further line of a journal: a worker's result for one photograph. ``left_out`` holds the
    reasons by metric, ``environment`` the versions and device that computed the values."""

    index: int
    name: str
    values: ImageValues
    left_out: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
