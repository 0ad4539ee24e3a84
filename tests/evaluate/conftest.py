"""Fixtures of evaluations."""

import pytest
from evaluate.in_process import judge_here


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Evaluates without Ray; gives the indexes that were judged, as they come."""
    return judge_here(monkeypatch)
