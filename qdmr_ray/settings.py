"""Base of every typed setting: a frozen dataclass whose fields carry help, unit and limits.

It uses the standard library only, so that ``qdmr_ray.nets`` and ``qdmr_ray.stages`` work where only
PyTorch is installed. ``qdmr_ray.config`` reads YAML files into these classes.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import ge, gt, le
from typing import Any, ClassVar

from qdmr_ray.errors import SettingsError

_LIMITS = {"minimum": (ge, "at least"), "above": (gt, "above"), "maximum": (le, "at most")}


def setting(
    default: Any,
    help: str,
    *,
    unit: str | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """Returns a dataclass field with its default (or default factory), help text, unit and limits.
    ``minimum`` and ``maximum`` are inclusive, ``above`` is exclusive; on a tuple each item is
    checked, and ``None`` values (optional settings) pass."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum}
    metadata = {"help": help, "unit": unit, "choices": choices, **limits}
    kind = "default_factory" if callable(default) else "default"
    return dataclasses.field(**{kind: default}, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checks each field against its limits when built; subclasses extend ``__post_init__``."""

    # pydantic reads this when a file is parsed: an unknown key is an error, never ignored.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple | list) else (value,):
                if item is not None and not dataclasses.is_dataclass(item):
                    _check_limits(field.name, item, field.metadata)


def _check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{name} must be a finite number; it is {value}")
    if limits.get("choices") is not None and value not in limits["choices"]:
        options = ", ".join(str(choice) for choice in limits["choices"])
        raise SettingsError(f"{name} must be one of {options}; it is {value!r}")
    for kind, (holds, words) in _LIMITS.items():
        if limits.get(kind) is not None and not holds(value, limits[kind]):
            raise SettingsError(f"{name} must be {words} {limits[kind]}; it is {value}")
