"""What the tests of benchmarks share."""

from __future__ import annotations

import pytest
from rates import SMALL, SMALL_PRODUCT

from qdmr_ray.bench import machine
from qdmr_ray.stages import arithmetic


@pytest.fixture
def small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rates are measured quickly; nobody asks for their values."""
    for module, values in ((arithmetic, SMALL_PRODUCT), (machine, SMALL)):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
