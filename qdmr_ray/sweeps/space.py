"""The search space of a sweep: the settings that vary, their values, and their conditions.

    space = Space.parse({"network.codebook_size": {"choice": [256, 1024]},
                         "stages.uda.gan": {"float": [0.001, 0.1], "log": True}})

A parameter with ``when`` varies only where other parameters have the values named there; otherwise
the experiment's own value stands.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import optuna

from qdmr_ray.errors import SettingsError

CHOICE, FLOAT, INT = "choice", "float", "int"
_KINDS = (CHOICE, FLOAT, INT)
_KEYS = (*_KINDS, "log", "step", "when")
_SCALARS = (bool, int, float, str)
# More trials than this are no plan but a slip in a range or step.
_MOST_ROWS = 100_000


@dataclass(frozen=True)
class Parameter:
    """One setting that varies: among ``choices``, or from ``low`` to ``high`` inclusive."""

    name: str
    kind: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def suggest(self, trial: optuna.trial.BaseTrial) -> Any:
        """Returns the value that Optuna proposes in ``trial``."""
        if self.kind == INT:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        if self.kind == FLOAT:
            return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        found = trial.suggest_categorical(self.name, [label(choice) for choice in self.choices])
        return next(choice for choice in self.choices if label(choice) == found)

    def holds(self, value: Any) -> bool:
        """Returns whether the parameter can take ``value``."""
        if self.kind == CHOICE:
            return label(value) in [label(choice) for choice in self.choices]
        if not _is_number(self.kind, value) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step is not None else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def applies(self, settings: Mapping[str, Any]) -> bool:
        """Returns whether the parameter varies beside these settings."""
        return all(
            name in settings and label(settings[name]) in [label(value) for value in values]
            for name, values in self.when.items()
        )

    def values(self) -> list[Any]:
        """Returns all values, for a grid; raises SettingsError if there are too many."""
        if self.kind == CHOICE:
            return list(self.choices)
        step = 1 if self.kind == INT and self.step is None else self.step
        if step is None or self.log:
            raise SettingsError(
                f"space.{self.name}: a grid needs a choice, an int, or a float with step; write "
                f"choice: [...], or sampler: tpe"
            )
        steps = math.floor((self.high - self.low) / step + 1e-9)
        _check_rows(f"space.{self.name}", steps + 1)
        return [self.low + i * step for i in range(steps + 1)]

    def extremes(self) -> list[Any]:
        """Returns the values that have to be valid for all others to be valid."""
        if self.kind == CHOICE:
            return list(self.choices)
        convert = int if self.kind == INT else float
        return [convert(self.low), convert(self.high)]


def label(value: Any) -> Any:
    """Returns a number, a text, a bool or None as it is, and other values as JSON text, for
    Optuna."""
    if value is None or type(value) in _SCALARS:
        return value
    return json.dumps(value)


class Space:
    """Parameters, each after those that it depends on."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Returns the space that a sweep's file describes; raises SettingsError for an unknown
        kind, an empty range, or conditions in a circle."""
        found = {str(name): _parameter(str(name), spec) for name, spec in values.items()}
        for parameter in found.values():
            for other, wanted in parameter.when.items():
                if other not in found:
                    raise SettingsError(
                        f"space.{parameter.name}.when: {other} is not in the space; it can depend "
                        f"on {', '.join(n for n in found if n != parameter.name) or 'nothing'}"
                    )
                for value in wanted:
                    if not found[other].holds(value):
                        raise SettingsError(
                            f"space.{parameter.name}.when: {other} is never {value!r}; take one "
                            "of its values"
                        )
        return cls(_ordered(found))

    def sample(self, value_of: Callable[[Parameter], Any]) -> dict[str, Any]:
        """Returns settings with a value for each parameter that applies beside the others."""
        settings: dict[str, Any] = {}
        for parameter in self.parameters.values():
            if parameter.applies(settings):
                settings[parameter.name] = value_of(parameter)
        return settings

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yields every combination once; the last parameter varies fastest. Raises SettingsError if
        there are too many."""
        columns = [parameter.values() for parameter in self.parameters.values()]
        _check_rows("space", math.prod(map(len, columns)))
        seen = set()
        for values in itertools.product(*columns):
            row = dict(zip(self.parameters, values, strict=True))
            settings = self.sample(lambda parameter, row=row: row[parameter.name])  # type: ignore[misc]
            key = json.dumps(settings, sort_keys=True)
            if key not in seen:
                seen.add(key)
                yield settings

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Returns whether these are values of all parameters that apply, and of no others."""
        inside = self.sample(lambda parameter: settings.get(parameter.name))
        return set(settings) <= set(inside) and all(
            self.parameters[name].holds(value) for name, value in settings.items()
        )


def check_plain(place: str, value: Any) -> None:
    """Raises SettingsError, which starts with ``place``, for what YAML knows and no setting holds:
    dates, bytes, sets, and mappings whose keys are no texts."""
    try:
        json.dumps(value, sort_keys=True)
    except TypeError:
        told = "write numbers, texts, lists or `name: value` lines"
        raise SettingsError(f"{place}: {value!r} is no setting's value; {told}") from None


def _check_rows(place: str, count: int) -> None:
    if count > _MOST_ROWS:
        raise SettingsError(
            f"{place}: a grid of {count} trials, of which there may be {_MOST_ROWS}; write fewer "
            "values, a larger step, or sampler: tpe"
        )


def _parameter(name: str, spec: Any) -> Parameter:
    place = f"space.{name}"
    check_plain(place, spec)
    if not isinstance(spec, Mapping):
        raise SettingsError(f"{place}: write choice: [...], float: [low, high] or int: [low, high]")
    if unknown := [key for key in spec if key not in _KEYS]:
        raise SettingsError(f"{place}: unknown {unknown[0]!r}; known: {', '.join(_KEYS)}")
    kinds = [kind for kind in _KINDS if kind in spec]
    if len(kinds) != 1:
        raise SettingsError(f"{place}: needs one of {', '.join(_KINDS)}; it has {len(kinds)}")
    (kind,) = kinds
    when = spec.get("when", {})
    if not isinstance(when, Mapping):
        raise SettingsError(f"{place}.when must be setting: value lines; it is {when!r}")
    wanted = {str(k): tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
    if () in wanted.values():
        raise SettingsError(f"{place}.when must name a value of each setting; it is {when!r}")
    if kind == CHOICE:
        return Parameter(name, kind, choices=_choices(place, spec), when=wanted)
    low, high = _range(place, kind, spec[kind])
    log, step = spec.get("log", False), spec.get("step")
    if not isinstance(log, bool):
        raise SettingsError(f"{place}.log must be true or false; it is {log!r}")
    if log and low <= 0:
        raise SettingsError(f"{place}: a log scale needs values above 0; it starts at {low:g}")
    if log and step is not None:
        raise SettingsError(f"{place}: log and step exclude each other; take one away")
    fits = step is None or (_is_number(kind, step) and 0 < step <= high - low)
    # A step may be so small that their number is infinite.
    if not fits or (step and not math.isfinite((high - low) / step)):
        raise SettingsError(f"{place}.step must be above 0 and fit the range; it is {step!r}")
    return Parameter(name, kind, low=low, high=high, log=log, step=step, when=wanted)


def _choices(place: str, spec: Mapping[str, Any]) -> tuple[Any, ...]:
    choices = spec[CHOICE]
    if not isinstance(choices, list) or not choices:
        raise SettingsError(f"{place}.choice must be a list of values; it is {choices!r}")
    for key in ("log", "step"):
        if key in spec:
            raise SettingsError(f"{place}: a choice has no {key}; take it away")
    if len({json.dumps(choice, sort_keys=True) for choice in choices}) < len(choices):
        raise SettingsError(f"{place}.choice names a value twice: {choices!r}")
    return tuple(choices)


def _range(place: str, kind: str, limits: Any) -> tuple[float, float]:
    numbers = isinstance(limits, list) and all(_is_number(kind, limit) for limit in limits)
    if not numbers or len(limits) != 2:
        raise SettingsError(f"{place}.{kind} must be [low, high]; it is {limits!r}")
    low, high = limits
    if low >= high:
        raise SettingsError(f"{place}.{kind} is empty: {low} is not below {high}")
    if not math.isfinite(high - low):
        raise SettingsError(f"{place}.{kind} is wider than any number: from {low} to {high}")
    return low, high


def _is_number(kind: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if kind == INT else (int, float)):
        return False
    return math.isfinite(value)


def _ordered(found: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Returns the parameters level by level: those without conditions, then those that depend on
    them; each level keeps the file's order."""
    ordered: dict[str, Parameter] = {}
    while rest := {name: p for name, p in found.items() if name not in ordered}:
        ready = {name: p for name, p in rest.items() if p.when.keys() <= ordered.keys()}
        if not ready:
            raise SettingsError(f"space: {', '.join(rest)} depend on each other in a circle")
        ordered |= ready
    return ordered
