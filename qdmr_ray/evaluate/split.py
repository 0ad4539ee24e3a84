"""Splits the test set: photographs that a search may look at, and those for the final test.

Settings that were chosen by a metric on some photographs look better on these than they are. A
sweep therefore judges on the validation part of the test set, and its runs are evaluated on the
rest, in whatever dataset they find these photographs again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from qdmr_ray.config import EvaluationSettings, Experiment, stage_digest
from qdmr_ray.data.format.index import SetIndex
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.names import TEST_SET
from qdmr_ray.models.files import IMPORTED, read_description
from qdmr_ray.models.layout import FINAL_FOLDER
from qdmr_ray.storage import Location


def validation_indices(settings: EvaluationSettings, names: Sequence[str]) -> list[int]:
    """Returns the positions of the validation photographs among ``names``, ascending.

    These photographs match ``validation_names``. Without such patterns they are the share
    ``validation_share`` of all, chosen by a hash of their names, so that every run on the same data
    chooses the same. Raises SettingsError where a pattern matches nothing, or no photograph is
    left.
    """
    if settings.validation_names:
        matches: set[int] = set()
        for pattern in settings.validation_names:
            found = {i for i, name in enumerate(names) if fnmatchcase(name, pattern)}
            if not found:
                raise SettingsError(
                    f"evaluation.validation_names: no test photograph is called {pattern}; they "
                    f"are called {', '.join(names[:3])}{', …' * (len(names) > 3)}"
                )
            matches |= found
        chosen = sorted(matches)
    else:
        count = round(settings.validation_share * len(names))
        if settings.validation_share and not count:
            raise SettingsError(
                f"evaluation.validation_share={settings.validation_share:g} of {len(names)} test "
                "photographs is none: raise it, or pack more"
            )
        hashes = [hashlib.sha256(name.encode()).digest() for name in names]
        chosen = sorted(sorted(range(len(names)), key=lambda i: (hashes[i], i))[:count])
    if names and len(chosen) == len(names):
        raise SettingsError(
            f"evaluation.validation_names and validation_share take all {len(names)} test "
            "photographs, so that none is left for the final figures: take fewer"
        )
    return chosen


def was_trained_on(
    run: Location,
    experiment: Experiment | None,
    descriptions: Mapping[str, Mapping[str, Any]],
    reader: RecordReader,
) -> bool:
    """Returns whether the run's models were trained on a dataset of this content, wherever it lay:
    their digests are made of it."""
    if experiment is None:
        return False
    stages = {name: read_description(run.join(name, FINAL_FOLDER)) for name in experiment.run}
    digests = {name: str(found["digest"]) for name, found in stages.items() if found}
    imported = {name: digest for name, digest in digests.items() if digest.startswith(IMPORTED)}
    digest = reader.manifest.digest
    return any(
        stage_digest(experiment, name, digest, imported) == digests[name]
        for name in descriptions
        if name not in imported
    )


def seen_photographs(
    experiment: Experiment, reader: RecordReader, own: RecordReader | None
) -> list[int]:
    """Returns the test photographs of ``reader`` that the run's training was judged on: those with
    the pixels of a validation photograph of its ``own`` dataset, by default that of ``data.path``.
    Raises QdmrError where that can't be read, or no photograph is left."""
    data = experiment.data
    try:
        own = own or RecordReader(data.path, endpoint=data.s3_endpoint)
        table = own.index(TEST_SET)
    except QdmrError as error:
        raise QdmrError(
            f"data.path of the run, {data.path!r}, can't be read ({error}), so nobody can tell "
            "which photographs its training was judged on: bring it back; or, where --data holds "
            "none of them, add --set evaluation.validation_share=0 --set "
            "evaluation.validation_names=[]"
        ) from error
    names = [table[i].name for i in range(own.count(TEST_SET))]
    found = reader.index(TEST_SET)
    seen = _alike(found, table, validation_indices(experiment.evaluation, names))
    if len(seen) == len(found):
        raise QdmrError(
            "the test set holds only photographs that the run's training was judged on "
            f"({len(seen)} validation photographs of {data.path}): name other ones with --data"
        )
    return seen


def _alike(photographs: SetIndex, chosen: SetIndex, positions: Sequence[int]) -> list[int]:
    """Returns the positions, ascending, of ``photographs`` with the size and pixels of one of the
    ``chosen`` at ``positions``, whatever their names and ground truths."""
    # The record's sha256 covers the ground truth, too, which a copy may have been packed without.
    seen = {chosen.pixels(position) for position in positions}
    return [i for i in range(len(photographs)) if photographs.pixels(i) in seen]
