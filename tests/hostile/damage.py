"""Damaged variants of valid files, thousands of which a test tries in one limited process.

holds(lambda data: read(data), damaged_bytes(whole), examples=1000)
holds(lambda text: load(text), damaged_yaml(values), examples=300)
"""

import copy
import datetime
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import yaml
from hostile.limits import outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qdmr_ray.errors import QdmrError

T = TypeVar("T")

# Values that stand in place of right ones: out of every range, not to be shown, or of other types.
STRANGE_NUMBERS = (
    *(0, -1, 1, 2, 1000, 10**6, 2**31, 2**63 - 1, 2**64, 10**400, -(10**9)),
    *(0.5, -0.0, 1e-320, 1e-9, 1e9, 1e308, -1e308, float("inf"), float("nan")),
)
STRANGE_TEXTS = (
    *("", " ", "1", "null", "x" * 3000, "../../x", "/dev/zero", "s3://", "a: b", "{{7*7}}"),
    *("\x1b[2J", "a\nb", "\0", "\u202egnp", "\ud800", "\U0001f4f7", "e\u0301", "\ufeff", "qdmr:X"),
)
STRANGE: tuple[Any, ...] = (
    *(None, True, [], {}, [None], [[[]]], {"a": 1}, {1: 2}, {None: {}}, {True: "a", "\u202e": "b"}),
    *(datetime.date(2026, 11, 28), b"\0\xff", {"choice": []}, {"float": [0, 1e308]}),
)
# Text that is YAML, or nearly.
FRAGMENTS = (
    *("&a [*a]", "*a", "<<: *a", "<<: 1", "{<<: [1]}", "? ", "? [a]\n: b", "=", "@", "`", "'"),
    *("!!python/name:os.system", "!!binary =", "!!timestamp x", "!!bool x", "!!int", "2026-99-99"),
    *("[" * 100, "{a: " * 100, "- " * 100, "---\n", "...\n", "%YAML 9.9\n---\n", "|\n", ">9\n"),
    *("\t", "\r", "\x85", "\ufeff", "\x1b", '"\\ud800"', "9" * 5000, "~", ".inf", ".nan", "0b2"),
)

_damage = st.tuples(
    st.integers(0, 2**31), st.sampled_from(("put", "flip", "cut", "repeat", "drop")), st.binary()
)


def holds(
    action: Callable[[T], Any],
    variants: st.SearchStrategy[T],
    *,
    examples: int,
    seconds: float = 60,
) -> None:
    """Asserts that ``action`` returns or raises a QdmrError of printable lines for every variant
    that hypothesis draws, the same ones each time, within the limit of memory."""

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(variants)
    def each(variant: T) -> None:
        told: tuple[str, ...] = ()
        try:
            action(variant)
        except QdmrError as error:
            told = error.args
        assert all(line.isprintable() for line in told), told

    found = outcome(each, seconds=seconds)
    assert found.crash is None, found.crash


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draws a file with up to four bytes changed, pieces lost or repeated, or its end cut off."""
    data = bytearray(whole)
    for number, kind, value in draw(st.lists(_damage, min_size=1, max_size=4)):
        place = number % max(1, len(data))
        if kind == "put":
            data[place : place + len(value)] = value
        elif kind == "flip" and data:
            data[place] ^= 1 << number % 8
        elif kind == "cut":
            del data[place:]
        elif kind == "repeat":
            data[place:place] = data[place : place + 1 + number % 64]
        else:
            del data[place : place + 1 + number % 64]
    return bytes(data)


@st.composite
def damaged_values(draw: st.DrawFn, whole: Any) -> Any:
    """Draws plain values of which up to three are replaced, lost, doubled, wrapped, swapped with
    others, or called by another name. A replaced one is of its own kind in half of the cases."""
    values = {"": copy.deepcopy(whole)}
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        place, key = draw(st.sampled_from(list(_places(values))))
        kind = draw(st.sampled_from((*["replace"] * 6, "lose", "wrap", "rename", "take")))
        if kind == "replace":
            place[key] = draw(_instead_of(place[key]))
        elif kind == "wrap":
            place[key] = [place[key]] if draw(st.booleans()) else {key: place[key]}
        elif kind == "take":
            other, name = draw(st.sampled_from(list(_places(values))))
            place[key] = copy.deepcopy(other[name])
        elif isinstance(place, list):
            place[key : key + 1] = [] if kind == "lose" else [place[key]] * 2
        elif place is not values:
            value = place.pop(key)
            if kind == "rename":
                place[draw(st.sampled_from((*STRANGE_TEXTS, 1, None, True)))] = value
    return values[""]


def _instead_of(value: Any) -> st.SearchStrategy[Any]:
    """Draws strange values, half of them of the kind of ``value``."""
    if isinstance(value, str):
        alike: st.SearchStrategy[Any] = st.sampled_from(STRANGE_TEXTS) | st.text(max_size=9)
    elif isinstance(value, bool | None):
        alike = st.booleans()
    elif isinstance(value, int | float):
        alike = st.sampled_from(STRANGE_NUMBERS) | st.integers() | st.floats()
    else:
        alike = st.sampled_from(([], {}, [value], {"": value}))
    others = (*STRANGE_TEXTS, *STRANGE_NUMBERS, *STRANGE)
    return (alike | st.sampled_from(others)).map(copy.deepcopy)


@st.composite
def damaged_yaml(draw: st.DrawFn, whole: Any) -> str:
    """Draws the YAML text of damaged values, with damage to the text in a quarter of the cases."""
    values = draw(damaged_values(whole))
    text = yaml.safe_dump(values, allow_unicode=True, default_flow_style=draw(st.booleans()))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1)))):
        place, end = draw(st.integers(0, len(text))), draw(st.integers(0, 3))
        text = text[:place] + draw(st.sampled_from(FRAGMENTS)) + text[place + end :]
    return text


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every value below ``values`` as the mapping or list that holds it, and its key."""
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])
