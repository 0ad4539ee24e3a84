"""What a worker of an evaluation measures of a photograph that both lenses took."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from qdmr_ray.config import EvaluationSettings
from qdmr_ray.data.format.reader import Record, RecordReader
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.codebook.usage import SOURCE, TARGET
from qdmr_ray.evaluate.gap.pairs import VQGAN, SourceLens
from qdmr_ray.evaluate.metrics.metric import Measure, MetricInfo, json_value, measured
from qdmr_ray.evaluate.names import INPUT, S2T, SOURCE_LENS, TEST_SET
from qdmr_ray.evaluate.results import ImageValues, JudgedGap
from qdmr_ray.evaluate.spectrum import SPECTRUM, radial_power, ratio_distance, spectrum_ratio
from qdmr_ray.evaluate.zones import psnr_by_zone
from qdmr_ray.models.files import LoadedModel, load_model
from qdmr_ray.restore.restoration import restore
from qdmr_ray.restore.streamed import Codes
from qdmr_ray.storage import open_location

# Values by image, then by metric.
Table = dict[str, dict[str, float]]


class Choices:
    """Counts, int64 (K,), of the codes that a photograph chose, by network and domain."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, np.ndarray]] = {}

    def of(self, name: str, domain: str, model: LoadedModel) -> Codes:
        """Returns the function that counts what the network ``name`` chooses in a ``domain``."""

        def count(indices: np.ndarray) -> None:
            size = model.network.settings.codebook_size
            by_domain = self.counts.setdefault(name, {})
            by_domain[domain] = np.bincount(indices.ravel(), minlength=size)

        return count


class TwoLenses:
    """Measures test photographs that the source lens took, too; its networks are loaded once."""

    def __init__(
        self,
        source: SourceLens,
        models: Mapping[str, LoadedModel],
        metrics: Sequence[tuple[MetricInfo, Measure]],
        settings: EvaluationSettings,
        *,
        endpoint: str | None,
        device: str,
    ) -> None:
        self._records, self._models, self._metrics = source.records, models, metrics
        self._reader = RecordReader(source.data, endpoint=endpoint)
        self._vqgan: LoadedModel | None = None
        if source.vqgan is not None:
            self._vqgan = load_model(open_location(source.vqgan, endpoint=endpoint))
            self._vqgan.network.to(device)
        self._psnr_by_zone = partial(psnr_by_zone, border=settings.border, luma=settings.luma)

    def measure(
        self,
        index: int,
        name: str,
        record: Record,
        images: Mapping[str, np.ndarray],
        choices: Choices,
    ) -> tuple[JudgedGap, dict[str, np.ndarray]]:
        """Returns the values of the photograph ``index``, and the pictures that belong to them.

        ``name`` is its name among the results, ``record`` what the target lens took, ``images`` its
        picture and what the stages made of it, and ``choices`` has the codes that they chose
        meanwhile. Raises QdmrError where the photograph of the source lens can't be read.
        """
        truth = record.ground_truth
        assert truth is not None, "photographs are paired by their ground truths"
        source = self._reader.read(TEST_SET, self._records[index]).image
        pictures = {SOURCE_LENS: source}
        taken = {INPUT: source, **self._restored(source, SOURCE, choices)}
        on_source, _ = measured(self._metrics, taken, truth)
        zones: Table = {}
        # Nothing is left inside the border, which leaves PSNR itself out, too.
        with suppress(QdmrError):
            zones = {kind: self._psnr_by_zone(image, truth) for kind, image in images.items()}
        style: Table = {}
        spectra: dict[str, np.ndarray] = {}
        if self._vqgan is not None:
            styled = self._styled(record.image, source, choices)
            pictures[S2T] = styled[S2T]
            with_truth = [(info, m) for info, m in self._metrics if info.needs_truth]
            style, _ = measured(with_truth, styled, record.image)
            reference = radial_power(record.image)
            for kind, image in styled.items():
                spectra[kind] = spectrum_ratio(radial_power(image), reference)
                style[kind][SPECTRUM.name] = ratio_distance(spectra[kind])
        gap = JudgedGap(
            name=name,
            source_lens=_finite(on_source),
            zones=_finite(zones),
            style=_finite(style),
            spectra_db={k: tuple(map(json_value, v.tolist())) for k, v in spectra.items()},
            counts={
                name: {domain: tuple(counts.tolist()) for domain, counts in by_domain.items()}
                for name, by_domain in choices.counts.items()
            },
        )
        return gap, pictures

    def _styled(
        self, target: np.ndarray, source: np.ndarray, choices: Choices
    ) -> dict[str, np.ndarray]:
        """Returns the images whose distance from the ``target`` picture is measured; counts the
        codes that the VQGAN and the stages choose for them."""
        assert self._vqgan is not None
        passed = {}
        for domain, image in ((SOURCE, source), (TARGET, target)):
            codes = choices.of(VQGAN, domain, self._vqgan)
            passed[domain] = restore(image, self._vqgan, codes=codes)
        s2t = passed[SOURCE]
        restore(s2t, self._vqgan, codes=choices.of(VQGAN, S2T, self._vqgan))
        choosing = {n: model for n, model in self._models.items() if n in choices.counts}
        for name, model in choosing.items():
            restore(s2t, model, codes=choices.of(name, S2T, model))
        return {SOURCE: source, S2T: s2t, TARGET: passed[TARGET]}

    def _restored(self, image: np.ndarray, domain: str, choices: Choices) -> dict[str, np.ndarray]:
        return {
            name: restore(image, model, codes=choices.of(name, domain, model))
            for name, model in self._models.items()
        }


def _finite(values: Table) -> ImageValues:
    return {
        name: {metric: json_value(value) for metric, value in row.items()}
        for name, row in values.items()
    }
