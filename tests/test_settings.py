"""Limits of single settings, and that every setting of an experiment has them right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import pytest

from qdmr_ray.config import Experiment
from qdmr_ray.data.packing.pack import PackSettings
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.nets import NetworkSettings, SwinSettings
from qdmr_ray.optics.lens import LensSettings
from qdmr_ray.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    depth: int = setting(1, "nested", minimum=1)


@dataclass(frozen=True, kw_only=True)
class Sample(Settings):
    at_least: int = setting(2, "inclusive from below", minimum=2)
    above: float = setting(1.0, "exclusive from below", above=0)
    at_most: float = setting(0.5, "inclusive from above", minimum=0, maximum=1)
    choice: str = setting("red", "one of some", choices=("red", "green"))
    several: tuple[int, ...] = setting((1, 2), "each is checked", minimum=1)
    words: tuple[str, ...] = setting((), "each is checked", choices=("a", "b"))
    optional: int | None = setting(None, "may be left out", minimum=1)
    inner: Inner = setting(Inner, "a section")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"at_least": 2},
        {"above": 1e-9},
        {"at_most": 0.0},
        {"at_most": 1.0},
        {"choice": "green"},
        {"several": ()},
        {"words": ("b", "a", "b")},
        {"optional": None},
        {"optional": 1},
    ],
)
def test_values_within_the_limits_are_taken(values: dict[str, Any]) -> None:
    sample = Sample(**values)
    assert all(getattr(sample, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"at_least": 1}, "at_least must be at least 2; it is 1"),
        ({"above": 0}, "above must be above 0; it is 0"),
        ({"above": math.nan}, "above must be a finite number; it is nan"),
        ({"at_most": 1.5}, "at_most must be at most 1; it is 1.5"),
        ({"at_most": math.nan}, "at_most must be a finite number; it is nan"),
        ({"choice": "blue"}, "choice must be one of red, green; it is 'blue'"),
        ({"several": (3, 0)}, "several must be at least 1; it is 0"),
        ({"words": ("a", "c")}, "words must be one of a, b; it is 'c'"),
        ({"optional": 0}, "optional must be at least 1; it is 0"),
    ],
)
def test_values_outside_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        Sample(**values)
    assert str(error.value) == message


def test_settings_are_constant_and_named() -> None:
    sample = Sample()
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.at_least = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Sample(5)  # type: ignore[call-arg]
    assert Sample().inner == Inner(depth=1)
    assert issubclass(SettingsError, QdmrError)


def fields_of(
    section: type, prefix: str = ""
) -> Iterator[tuple[str, type, dataclasses.Field[Any]]]:
    """(dotted name, its class, field) of a section, the sections in it included."""
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        yield f"{prefix}{field.name}", section, field
        hint = hints[field.name]
        for kind in (hint, *get_args(hint)):  # a section may be optional
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                yield from fields_of(kind, f"{prefix}{field.name}.")


FIELDS = {
    name: (section, field)
    for root, prefix in ((Experiment, ""), (PackSettings, "pack."), (LensSettings, "lens."))
    for name, section, field in fields_of(root, prefix)
}
LIMITED = [
    name
    for name, (_, field) in FIELDS.items()
    if any(field.metadata.get(limit) is not None for limit in ("minimum", "above", "maximum"))
]


def test_every_setting_has_help_and_no_two_limits_that_clash() -> None:
    assert len(FIELDS) > 100
    for name, (_, field) in FIELDS.items():
        limits = field.metadata
        assert len(limits["help"]) > 5, name
        low = [limits[key] for key in ("minimum", "above") if limits[key] is not None]
        assert len(low) <= 1, name
        if low and limits["maximum"] is not None:
            assert low[0] < limits["maximum"], name


@pytest.mark.parametrize("name", LIMITED)
def test_every_limit_is_in_force(name: str) -> None:
    section, field = FIELDS[name]
    limits = field.metadata
    default = field.default_factory() if callable(field.default_factory) else field.default

    def built(value: float) -> object:
        return section(**{field.name: _shaped(default, value)})

    for limit, outside in (
        ("minimum", lambda value: value - 1),
        ("above", lambda value: value),
        ("maximum", lambda value: value + 1),
    ):
        if limits[limit] is not None:
            with pytest.raises(SettingsError, match=rf"^{field.name} must be "):
                built(outside(limits[limit]))


def _shaped(default: Any, value: float) -> Any:
    """``value`` in every place of a tuple or nested tuple, as the default has them."""
    if isinstance(default, tuple):
        return tuple(_shaped(item, value) for item in default) or (value,)
    return value


def test_network_sizes_must_go_together() -> None:
    with pytest.raises(SettingsError, match=r"widths needs at least two values; it is \[64\]"):
        NetworkSettings(widths=(64,))
    with pytest.raises(SettingsError, match=r"widths must end in a multiple of swin\.heads \(8\)"):
        NetworkSettings(widths=(16, 36))
    sizes = NetworkSettings(widths=(16, 24, 36), swin=SwinSettings(heads=6, window=5))
    assert (sizes.feature_width, sizes.downsampling, sizes.multiple) == (36, 4, 20)
