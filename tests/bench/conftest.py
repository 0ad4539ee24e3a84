"""What the tests of benchmarks share."""

from __future__ import annotations

import pytest

from qdmr_ray.bench import machine


@pytest.fixture
def small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rates are measured once and on small matrices: at full size that takes five
    seconds of a CPU."""
    monkeypatch.setitem(machine._MATRIX_SIDE, "cpu", 128)
    monkeypatch.setitem(machine._COPIED_BYTES, "cpu", 1 << 20)
    monkeypatch.setattr(machine, "_REPEATS", 1)
