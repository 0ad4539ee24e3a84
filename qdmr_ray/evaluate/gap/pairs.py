"""Finds a run's test photographs among those that were taken through the source lens.

Simulation takes one clean photograph through any lens. ``evaluation.source_lens`` names a packed
dataset whose test set holds the test photographs through the source lens, under their names and
with their ground truths.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.codebook.compute import trained_weights
from qdmr_ray.evaluate.names import S2T, SOURCE_LENS, TEST_SET
from qdmr_ray.models.layout import FINAL_FOLDER
from qdmr_ray.storage import Location, open_location

# The stage whose network makes s2t images.
VQGAN = "vqgan"


@dataclass(frozen=True, kw_only=True)
class SourceLens:
    """The photographs through the source lens: ``data`` is their packed dataset, ``records`` has
    for the positions of judged test photographs those in its test set. ``vqgan`` is the place of
    the run's VQGAN, None where the run has none. ``digests`` are those of both."""

    data: str
    records: dict[int, int]
    vqgan: str | None
    digests: dict[str, str]

    @property
    def pictures(self) -> tuple[str, ...]:
        """The pictures that an evaluation writes of each photograph beside the others."""
        return (SOURCE_LENS,) if self.vqgan is None else (SOURCE_LENS, S2T)


def find_source_lens(
    path: str,
    run: Location,
    models: Iterable[str],
    reader: RecordReader,
    judged: Iterable[int],
    endpoint: str | None,
) -> SourceLens:
    """Returns the ``judged`` test photographs of ``reader`` as the dataset at ``path`` has them,
    and the VQGAN of ``run``; raises QdmrError where one of the ``models`` has the name of a picture
    that will be written, for no dataset there, and as :func:`matching_records` does."""
    for name in (SOURCE_LENS, S2T):
        if name in models:
            raise QdmrError(
                f"{run.uri}: {name} is a model, and with evaluation.source_lens the name of other "
                "results: give the model another name"
            )
    try:
        other = RecordReader(path, endpoint=endpoint)
        records = matching_records(reader, other, judged)
    except QdmrError as error:
        raise QdmrError(
            f"evaluation.source_lens={path}: {error}; --set evaluation.source_lens=null evaluates "
            "the target lens alone"
        ) from error
    digests, vqgan = {SOURCE_LENS: other.manifest.set(TEST_SET).content}, None
    if (weights := trained_weights(run)) is not None:
        digests[VQGAN], vqgan = weights, run.join(VQGAN, FINAL_FOLDER).uri
    data = open_location(path, endpoint=endpoint).uri
    return SourceLens(data=data, records=records, vqgan=vqgan, digests=digests)


def matching_records(
    reader: RecordReader, other: RecordReader, wanted: Iterable[int]
) -> dict[int, int]:
    """Returns, for each of the ``wanted`` test photographs of ``reader``, the position of the one
    in the test set of ``other`` that has its name and its ground truth. Raises QdmrError where
    ``other`` has no test set, one of the two has no ground truth, or a photograph is missing or has
    another ground truth."""
    ours, theirs = (r.manifest.set(TEST_SET) for r in (reader, other))
    if not ours.paired:
        raise QdmrError(
            "the test set has no ground truth, by which its photographs are recognized there; name "
            "a test set of pairs with --data"
        )
    if not theirs.paired:
        raise QdmrError("its test set has no ground truth; pack it with the clean photographs")
    index, other_index = reader.index(TEST_SET), other.index(TEST_SET)
    known: dict[str, list[int]] = {}
    for candidate in range(len(other_index)):
        known.setdefault(other_index[candidate].name, []).append(candidate)

    def alike(position: int, candidate: int) -> bool:
        if ours.strip_pixels == theirs.strip_pixels:
            truth = index.pixels(position, ground_truth=True)
            return truth == other_index.pixels(candidate, ground_truth=True)
        # Checksums are those of strips, which another version has cut in another way.
        first, second = reader.read(TEST_SET, position), other.read(TEST_SET, candidate)
        assert first.ground_truth is not None
        assert second.ground_truth is not None
        return np.array_equal(first.ground_truth, second.ground_truth)

    found = {}
    for position in wanted:
        name = index[position].name
        if name not in known:
            raise QdmrError(f"its test set has no {name}; pack all test photographs into it")
        matches = [candidate for candidate in known[name] if alike(position, candidate)]
        if not matches:
            raise QdmrError(
                f"its ground truth of {name} isn't the test set's; simulate both from the same "
                "clean photograph"
            )
        found[position] = matches[0]
    return found
