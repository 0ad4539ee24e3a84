"""What tests of jobs share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fake_cluster import FakeCluster


@pytest.fixture
def fake_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A jobs API without a Ray behind it."""
    # Imported late: it imports Ray.
    from fake_cluster import FakeCluster

    for name in list(os.environ):
        if name.startswith("RAY_"):
            monkeypatch.delenv(name)
    with FakeCluster() as cluster:
        yield cluster
