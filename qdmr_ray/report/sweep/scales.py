"""Places of a parameter's or a metric's values along an axis, as fractions of its length."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qdmr_ray.report.charts import wants_log
from qdmr_ray.report.run_folder import is_number
from qdmr_ray.report.sweep.data import MISSING, setting_text

NOT_USED = "not used"
# Shares of an axis that a slot takes, and the gap between the slots and the rest.
SLOT, GAP = 0.16, 0.06
# A value further from the middle half of all values than this many times its width stands at the
# edge: one trial that went wrong must not flatten the rest. (Box plots use a smaller factor.)
FENCE = 3.0
FEWEST_FOR_FENCE = 8
# Whole numbers in a range of at most this many stand side by side, as choices do.
MOST_WHOLE = 12
WANTED_TICKS, MOST_LOG_TICKS = 5, 6


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis of numbers from ``low`` to ``high``, or of ``choices`` at even distances. Below it
    stand ``slots`` for values without a place there: an unused parameter, or 0 on a logarithmic
    axis."""

    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()

    def place(self, value: Any) -> float:
        """Returns the fraction at which ``value`` stands; numbers beyond the ends stand there."""
        if self._in_slot(value):
            return (self.slots.index(_text(value)) + 0.5) * SLOT
        if self.choices:
            fraction = (self.choices.index(setting_text(value)) + 0.5) / len(self.choices)
        elif self.low == self.high:
            fraction = 0.5
        else:
            low, high, value = self.low, self.high, self.held(value)
            if self.logarithmic:
                low, high, value = math.log(low), math.log(high), math.log(value)
            fraction = (value - low) / (high - low)
        return self._start + (1.0 - self._start) * fraction

    def room(self, value: Any) -> float:
        """Returns the width of the place that ``value`` shares with its like; 0 for a number."""
        if self._in_slot(value):
            return SLOT
        return (1.0 - self._start) / len(self.choices) if self.choices else 0.0

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The places of the ticks with their labels."""
        slots = [((index + 0.5) * SLOT, slot) for index, slot in enumerate(self.slots)]
        if self.choices:
            return slots + [(self.place(choice), choice) for choice in self.choices]
        ticks = [self.low]
        if self.low < self.high:
            ticks = round_ticks(self.low, self.high, logarithmic=self.logarithmic)
        if self.whole:
            ticks = [tick for tick in ticks if tick == round(tick)] or [self.low, self.high]
        # Up to ten digits, so that neighbouring ticks never read the same.
        texts = [f"{tick:.10g}".replace("e-0", "e-").replace("-", "−") for tick in ticks]
        return [*slots, *zip(map(self.place, ticks), texts, strict=True)]

    @property
    def ends(self) -> tuple[float, float]:
        """The range as a Plotly axis takes it: a logarithmic one by its exponents."""
        low, high = self.low, self.high
        return (math.log10(low), math.log10(high)) if self.logarithmic else (low, high)

    def held(self, value: float | None) -> float:
        """Returns ``value`` limited to the ends; the low end where there is none."""
        return self.low if value is None else min(max(value, self.low), self.high)

    @property
    def _start(self) -> float:
        return len(self.slots) * SLOT + GAP if self.slots else 0.0

    def _in_slot(self, value: Any) -> bool:
        return _text(value) in self.slots and not self._has_place(value)

    def _has_place(self, value: Any) -> bool:
        if self.choices:
            return value is not MISSING and setting_text(value) in self.choices
        return _is_finite(value) and (not self.logarithmic or value > 0)


def parameter_scale(spec: Mapping[str, Any], observed: Sequence[Any]) -> Scale:
    """Returns the axis of a parameter from its entry in the search space and its observed values.
    Values outside the space, which the experiment's own settings may be, have their places too."""
    known = [value for value in observed if value is not MISSING]
    choices, ends = spec.get("choice"), spec.get("float", spec.get("int"))
    if not _is_range(ends):
        listed = choices if isinstance(choices, list) else []
        if listed or not known or not all(map(_is_finite, known)):
            labels = tuple(dict.fromkeys(map(setting_text, [*listed, *known])))
            return _with_slots(Scale(choices=labels), observed)
        ends = [min(known), max(known)]
    if "int" in spec and not spec.get("log"):
        whole = _whole_numbers(ends, spec.get("step"), known)
        if len(whole) <= MOST_WHOLE:
            return _with_slots(Scale(choices=tuple(map(setting_text, whole))), observed)
    logarithmic = bool(spec.get("log")) and ends[0] > 0
    numbers = [value for value in known if _is_finite(value) and (value > 0 or not logarithmic)]
    scale = Scale(
        low=float(min([*ends, *numbers])),
        high=float(max([*ends, *numbers])),
        logarithmic=logarithmic,
        whole="int" in spec,
    )
    return _with_slots(scale, observed)


def metric_scale(values: Sequence[float], better: int) -> Scale:
    """Returns the axis of a metric, with a margin; logarithmic where its values fall far. Values
    much worse than the rest stand at its end, where ``better`` is not 0."""
    if not values:
        return Scale()
    low, high = _fenced(values, better)
    if wants_log([low, high]):
        return Scale(low=low / 1.15, high=high * 1.15, logarithmic=True)
    # Where all values are equal, any width will do that keeps them in the middle.
    margin = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return Scale(low=low - margin, high=high + margin)


def round_ticks(low: float, high: float, *, logarithmic: bool) -> list[float]:
    """Returns round numbers inside the range: steps of 1, 2 or 5, or decades."""
    if logarithmic:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
            ticks = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
            if len(ticks) >= WANTED_TICKS - 2:
                break
        return ticks[:: math.ceil(len(ticks) / MOST_LOG_TICKS)] if ticks else [low]
    rough = (high - low) / WANTED_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1.0, 2.0, 5.0, 10.0) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _with_slots(scale: Scale, observed: Sequence[Any]) -> Scale:
    texts = {_text(value) for value in observed if not scale._has_place(value)}
    # An unused parameter comes first, at the very end of the axis.
    slots = sorted(texts, key=lambda text: (text != NOT_USED, text))
    return replace(scale, slots=tuple(slots))


def _text(value: Any) -> str:
    return NOT_USED if value is MISSING else setting_text(value)


def _fenced(values: Sequence[float], better: int) -> tuple[float, float]:
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) >= FEWEST_FOR_FENCE:
        first, third = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
        reach = FENCE * (third - first)
        low = max(low, first - reach) if better > 0 and reach else low
        high = min(high, third + reach) if better < 0 and reach else high
    return low, high


def _whole_numbers(ends: Sequence[int], step: Any, known: Sequence[Any]) -> list[int]:
    """Returns the numbers of an integer range and those taken outside it, if they are few."""
    step = step if isinstance(step, int) and step > 0 else 1
    low, high = math.ceil(ends[0]), math.floor(ends[1])
    searched = itertools.islice(range(low, high + 1, step), MOST_WHOLE + 1)
    return sorted({*searched, *(value for value in known if type(value) is int)})


def _is_range(ends: Any) -> bool:
    return isinstance(ends, list) and len(ends) == 2 and all(map(_is_finite, ends))


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
