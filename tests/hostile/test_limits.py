"""The limits that hostile inputs meet are real."""

import os
import signal
import time

import pytest
from hostile.limits import outcome, refused

from qdmr_ray.errors import QdmrError


def raise_error(text: str) -> None:
    raise QdmrError(text)


def test_values_and_errors_come_back() -> None:
    assert outcome(lambda: 3).value == 3
    assert len(outcome(lambda: b"more than a pipe holds" * 10**5).value) == 22 * 10**5
    assert refused(lambda: raise_error("a.yaml: is wrong"), match="a.yaml") == "a.yaml: is wrong"


def test_time_memory_and_crashes_are_told() -> None:
    assert outcome(lambda: time.sleep(60), seconds=0.2).crash == "took longer than 0.2 s"
    assert "MemoryError" in (outcome(lambda: len(b"x" * 4 * 10**9), memory=10**7).crash or "")
    assert outcome(lambda: os.kill(os.getpid(), signal.SIGABRT)).crash == "ended by SIGABRT"
    assert outcome(lambda: [][0]).crash == "IndexError: list index out of range"


@pytest.mark.parametrize("text", ["two\nlines", "an \x1b[31m escape", "something else"])
def test_what_is_no_printable_line_or_another_one_is_no_refusal(text: str) -> None:
    with pytest.raises(AssertionError):
        refused(lambda: raise_error(text), match="a.yaml")
