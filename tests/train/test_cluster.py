"""Whose Ray a command uses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
from local_ray import local_ray
from ray._common.utils import reset_ray_address
from ray._private.utils import write_ray_address

SESSION_OF_ANOTHER = """
import ray
from qdmr_ray.train.cluster import ensure_ray
ensure_ray()
print("session", ray._private.worker.global_worker.node.session_name)
"""


@contextmanager
def announced() -> Iterator[None]:
    """As `ray start` does it: a note on this machine that names the cluster started last."""
    write_ray_address(ray.get_runtime_context().gcs_address)
    yield
    reset_ray_address()


@pytest.mark.ray
def test_a_command_joins_no_cluster_that_it_was_not_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with local_ray(), announced():
        command = [sys.executable, "-c", SESSION_OF_ANOTHER]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        ours = ray._private.worker.global_worker.node.session_name
    assert done.returncode == 0, done.stderr
    assert "session " in done.stdout
    assert f"session {ours}" not in done.stdout
