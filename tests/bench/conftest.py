"""What the tests of benchmarks share."""

from __future__ import annotations

import pytest
from rates import SMALL

from qdmr_ray.bench import machine


@pytest.fixture
def small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rates are measured quickly; nobody asks for their values."""
    for name, value in SMALL.items():
        monkeypatch.setattr(machine, name, value)
