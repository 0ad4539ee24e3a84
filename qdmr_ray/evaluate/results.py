"""The typed files of an evaluation: ``evaluation.json``, and the lines of its journal.

    evaluation = Evaluation.read(open_location("runs/demo").join(EVALUATION_FILE))
    evaluation.stages["uda"]["psnr"], evaluation.statistics["uda"]["psnr"].ci95

``evaluate`` writes these documents; ``compare``, reports and sweeps read them. A value is None
(null) where it is not finite: an infinite PSNR means that two images are identical. A metric that
was not measured has no key.
"""

from typing import Annotated, Any, Self

from pydantic import (
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from qdmr_ray.evaluate.codebook.usage import SOURCE
from qdmr_ray.evaluate.metrics.registry import PRIMARY, metric_info
from qdmr_ray.evaluate.names import INPUT
from qdmr_ray.evaluate.spectrum import BANDS
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


# Values in dB by band (``evaluate.spectrum``), and how often each code of a codebook was chosen.
Spectrum = Annotated[tuple[FiniteFloat | None, ...], Field(min_length=BANDS, max_length=BANDS)]
Counts = tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]
# Statistics by image, then by metric.
StatisticsTable = dict[str, dict[str, Statistics]]


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


class PhotographGap(Part):
    """A photograph's values by metric, where it was taken through the source lens, too.

    ``source_lens`` compares the input and the stages' results of that second picture with the
    ground truth. ``zones`` has the PSNR of the target lens's input and results by zone of the field
    (``evaluate.zones``). ``style`` compares with the target lens's picture: the plain picture of
    the source lens as ``source``, the VQGAN's output for it as ``s2t``, and as ``target`` the
    VQGAN's output for the target lens's picture, which shows what the VQGAN itself loses; its
    metric ``spectrum`` is that of ``evaluate.spectrum``.
    """

    name: str
    source_lens: ImageValues
    zones: ImageValues
    style: ImageValues = Field(default_factory=dict)

    @property
    def metrics(self) -> ImageValues:
        """The values of the input and of each stage under the names that tables have for them:
        ``psnr_source``, ``ssim_source``, …, and by zone ``psnr_centre``, ``psnr_middle``,
        ``psnr_corner``."""
        found: ImageValues = {name: {} for name in (*self.source_lens, *self.zones)}
        for name, values in self.source_lens.items():
            found[name] |= {f"{metric}_{SOURCE}": value for metric, value in values.items()}
        for name, values in self.zones.items():
            found[name] |= {f"{PRIMARY}_{zone}": value for zone, value in values.items()}
        return found


class StyleGap(Part):
    """How far images are from what the target lens makes of the same photograph: ``statistics`` of
    ``PhotographGap.style``, and in ``change`` those of s2t minus source, photograph by photograph.
    ``spectra_db`` has, for each of ``frequencies`` in cycles per pixel, by how many dB the images'
    power exceeds the target lens's, as a mean over the photographs; null where none has such a
    frequency."""

    statistics: StatisticsTable
    change: dict[str, Statistics]
    frequencies: tuple[FiniteFloat, ...]
    spectra_db: dict[str, Spectrum]


class CodeChoices(Part):
    """How whole photographs choose among the ``codes`` of one network, for each domain: the counts'
    ``perplexity``, the number of codes ``used``, and in ``divergence_bits`` the Jensen-Shannon
    divergence from the target's choices, 0 for the same use and 1 for no code in common."""

    codes: int
    perplexity: dict[str, FiniteFloat]
    used: dict[str, int]
    divergence_bits: dict[str, FiniteFloat]


class ZoneGains(Part):
    """PSNR on the target lens by zone of the field: ``psnr`` of the input and of each stage, and
    ``gain``, that of each other stage minus that of the stage ``baseline``, photograph by
    photograph; without such a stage, null and empty."""

    psnr: StatisticsTable
    baseline: str | None = None
    gain: StatisticsTable = Field(default_factory=dict)


class Gap(Part):
    """What simulation alone can tell: the same photographs through both lenses.

    ``source_lens`` has the statistics of the input and each stage on the source lens,
    ``difference`` those of the values there minus those on the target lens, photograph by
    photograph: a stage's gap. ``style`` is null for a run without a VQGAN. ``codes`` has the
    networks with a codebook: the VQGAN, and the stages that fuse its codes.
    """

    source_lens: StatisticsTable
    difference: StatisticsTable
    zones: ZoneGains
    style: StyleGap | None = None
    codes: dict[str, CodeChoices] = Field(default_factory=dict)
    per_image: tuple[PhotographGap, ...] = ()


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


class WithGap(Document):
    """A file in which ``gap`` stands only where an evaluation knows both lenses, so that other
    evaluations are written as before there was one."""

    @model_serializer(mode="wrap")
    def _without_null(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        return {name: v for name, v in values.items() if name != "gap" or v is not None}


class Evaluation(WithGap):
    """``evaluation.json``: means over ``images`` photographs, and each one's own values.

    A metric's means are over the same photographs for the input and every stage: those that have a
    finite value for each. ``left_out`` names the others, and ``statistics`` tells how many counted.
    ``environment`` names versions and devices that computed the values, ``gap`` is there where the
    settings name the same photographs through the source lens (``evaluation.source_lens``).
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
    gap: Gap | None = None

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


class JudgedGap(PhotographGap):
    """A worker's part of ``gap`` for one photograph: beside its values ``spectra_db``, as
    ``StyleGap`` has them, and ``counts``, how often each code was chosen by network and domain."""

    spectra_db: dict[str, Spectrum] = Field(default_factory=dict)
    counts: dict[str, dict[str, Counts]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        for name, by_domain in self.counts.items():
            if len({len(counts) for counts in by_domain.values()}) > 1:
                raise ValueError(f"counts of {name} are of unlike length")
            if not all(map(any, by_domain.values())):
                raise ValueError(f"counts of {name} have no choice")
        return self


class Judged(WithGap):
    """A further line of a journal: a worker's result for one photograph. ``left_out`` holds the
    reasons by metric, ``environment`` the versions and device that computed the values."""

    index: int
    name: str
    values: ImageValues
    left_out: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    gap: JudgedGap | None = None
