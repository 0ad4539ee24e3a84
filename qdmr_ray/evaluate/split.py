"""Splits the test set: photographs that a search may look at, and those for the final test.

Settings that were chosen by a metric on some photographs look better on these than they are. A
sweep therefore judges on the validation part of the test set, and its runs are evaluated on the
rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from qdmr_ray.config import EvaluationSettings
from qdmr_ray.errors import SettingsError


def validation_indices(settings: EvaluationSettings, names: Sequence[str]) -> list[int]:
    """Returns the positions of the validation photographs among ``names``, ascending.

    These photographs match ``validation_names``. Without such patterns they are the share
    ``validation_share`` of all, chosen by a hash of their names, so that every run on the same data
    chooses the same. Raises SettingsError where a pattern matches nothing, or no photograph is
    left.
    """
    if settings.validation_names:
        for pattern in settings.validation_names:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise SettingsError(
                    f"evaluation.validation_names: no test photograph is called {pattern}; they "
                    f"are called {_some(names)}"
                )
        chosen = [
            i
            for i, name in enumerate(names)
            if any(fnmatchcase(name, pattern) for pattern in settings.validation_names)
        ]
    else:
        count = round(settings.validation_share * len(names))
        if settings.validation_share and not count:
            raise SettingsError(
                f"evaluation.validation_share={settings.validation_share:g} of {len(names)} test "
                "photographs is none: raise it, or pack more"
            )
        by_hash = sorted(range(len(names)), key=lambda i: (_hash(names[i]), i))
        chosen = sorted(by_hash[:count])
    if names and len(chosen) == len(names):
        raise SettingsError(
            f"evaluation.validation_names and validation_share take all {len(names)} test "
            "photographs, so that none is left for the final figures: take fewer"
        )
    return chosen


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
