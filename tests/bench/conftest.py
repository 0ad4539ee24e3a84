"""What the tests of benchmarks share."""

from __future__ import annotations

import pytest

from qdmr_ray.bench import step


@pytest.fixture
def small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rates are measured once and on small matrices: at full size that takes five
    seconds of a CPU."""
    monkeypatch.setitem(step._MATRIX_SIDE, "cpu", 128)
    monkeypatch.setitem(step._COPIED_BYTES, "cpu", 1 << 20)
    monkeypatch.setattr(step, "_MATRIX_REPEATS", 1)
