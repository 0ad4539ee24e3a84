"""Base of every typed setting: a frozen dataclass whose fields carry help, unit and limits.

It uses the standard library only, so that ``qdmr_ray.nets`` and ``qdmr_ray.stages`` work where only
PyTorch is installed. ``qdmr_ray.config`` reads YAML files into these classes.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from qdmr_ray.errors import SettingsError


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
    metadata = {
        "help": help,
        "unit": unit,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "choices": choices,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checks each field against its limits when built; subclasses extend ``__post_init__``."""

    # pydantic reads this when a file is parsed: an unknown key is an error, never ignored.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple | list) else (value,):
                self._check_limits(field, item)

    def _check_limits(self, field: dataclasses.Field[Any], value: Any) -> None:
        limits = field.metadata
        if value is None or dataclasses.is_dataclass(value):
            return
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{field.name} must be a finite number; it is {value}")
        if limits.get("choices") is not None and value not in limits["choices"]:
            options = ", ".join(str(choice) for choice in limits["choices"])
            raise SettingsError(f"{field.name} must be one of {options}; it is {value!r}")
        if limits.get("minimum") is not None and not value >= limits["minimum"]:
            raise SettingsError(f"{field.name} must be at least {limits['minimum']}; it is {value}")
        if limits.get("above") is not None and not value > limits["above"]:
            raise SettingsError(f"{field.name} must be above {limits['above']}; it is {value}")
        if limits.get("maximum") is not None and not value <= limits["maximum"]:
            raise SettingsError(f"{field.name} must be at most {limits['maximum']}; it is {value}")
