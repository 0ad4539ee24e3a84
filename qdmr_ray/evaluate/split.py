"""Splits the test set: photographs that a search may look at, and those for the final test.

Settings that were chosen by a metric on some photographs look better on these than they are. A
sweep therefore judges on the validation part of the test set, and its runs are evaluated on the
rest, in whatever dataset they find these photographs again.
"""

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from qdmr_ray.config import EvaluationSettings
from qdmr_ray.data.format.index import SetIndex
from qdmr_ray.errors import SettingsError


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


def alike_indices(photographs: SetIndex, chosen: SetIndex, positions: Sequence[int]) -> list[int]:
    """Returns the positions, ascending, of ``photographs`` with the size and pixels of one of the
    ``chosen`` at ``positions``, whatever their names and ground truths."""
    seen = {_pixels(chosen, position) for position in positions}
    return [i for i in range(len(photographs)) if _pixels(photographs, i) in seen]


def _pixels(table: SetIndex, position: int) -> tuple[int, ...]:
    # The record's sha256 covers the ground truth, too, which a copy may have been packed without.
    bands = table.image.first_bands[position : position + 2]
    return (*table.size(position), *table.image.bands[slice(*bands)].tolist())
