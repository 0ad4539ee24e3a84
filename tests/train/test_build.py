"""The pace at which a stage would use all of its GPUs' arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import settings

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.stages import STAGES, Components
from qdmr_ray.stages.arithmetic import needed_flop
from qdmr_ray.train import build
from qdmr_ray.train.worker_context import Host


def test_the_pace_at_peak_is_that_of_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "matrix_rate", lambda device, compute: 500.0)
    experiment = experiment_from_dict(settings(Path("data")))
    host = Host(gpu=False)
    # A rate measured while others use the CPU says nothing about a step.
    assert build.pace_at_peak("base", experiment, host) is None
    host.device, host.world_size = torch.device("cuda"), 3
    sizes = Components(network=experiment.network, discriminator=experiment.discriminator)
    flop = needed_flop(STAGES["base"], experiment.stage("base"), sizes, 16)
    assert build.pace_at_peak("base", experiment, host) == 3 * 500e9 / flop
    monkeypatch.setattr(build, "needed_flop", lambda *_: 0.0)
    assert build.pace_at_peak("base", experiment, host) is None


def test_a_network_that_looks_at_values_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_from_dict(settings(Path("data")))
    host = Host(gpu=False)
    host.device = torch.device("cuda")

    def looks(*_: object) -> float:
        return torch.empty(1, device="meta").item()

    monkeypatch.setattr(build, "needed_flop", looks)
    assert build.pace_at_peak("base", experiment, host) is None
