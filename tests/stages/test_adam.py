"""Adam's shortcut gives PyTorch's bits, and training never loads what it goes around."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdmr_ray.stages import STAGES
from qdmr_ray.stages.adam import Adam

STEPS = 3
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# A step, its state and a step after that, in a process of its own: this one may have compiled.
TRAINS = """
import copy, sys
from tiny_stages import SETTINGS, batch_of, tiny_stage
for name in sys.argv[1:]:
    stage = tiny_stage(name, SETTINGS[name])
    batch = batch_of(name, 2, seed=0)
    stage.step(batch)
    stage.load_state_dict(copy.deepcopy(stage.state_dict()))
    stage.step(batch)
    if "torch._dynamo" in sys.modules:
        sys.exit(f"{name} has loaded PyTorch's compiler")
"""


def trained(kind: type[torch.optim.Adam]) -> tuple[list[Tensor], dict[str, object]]:
    """Weights and the optimizer's state after some steps, a restart among them."""
    torch.manual_seed(0)
    network = nn.Linear(5, 3)
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "fused": True}
    optimizer = kind(network.parameters(), **settings)
    for step in range(STEPS):
        if step == 1:
            state = optimizer.state_dict()
            optimizer = kind(network.parameters(), **settings)
            optimizer.load_state_dict(state)
        optimizer.zero_grad(set_to_none=True)
        network(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
    return list(network.parameters()), optimizer.state_dict()


def test_the_bits_are_pytorchs() -> None:
    weights, state = trained(Adam)
    expected, expected_state = trained(torch.optim.Adam)
    for found, wanted in zip(weights, expected, strict=True):
        assert torch.equal(found, wanted)
        assert found.grad_fn is None
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0)


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("then", LAYOUTS)
def test_a_layout_changes_nothing_but_the_order_in_memory(
    first: torch.memory_format, then: torch.memory_format
) -> None:
    """A restart in the other layout, too: its moments were saved in the first one."""

    def conv(layout: torch.memory_format) -> nn.Conv2d:
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 3).to(memory_format=layout)

    def step(network: nn.Conv2d, optimizer: torch.optim.Adam, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad(set_to_none=True)
        network(torch.randn(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()

    plain, changed = conv(torch.contiguous_format), conv(first)
    expected = torch.optim.Adam(plain.parameters(), lr=1e-2)
    optimizer = Adam(changed.parameters(), lr=1e-2, fused=True)
    for seed in range(STEPS):
        step(plain, expected, seed)
        step(changed, optimizer, seed)
    state = optimizer.state_dict()
    changed = changed.to(memory_format=then)
    optimizer = Adam(changed.parameters(), lr=1e-2, fused=True)
    optimizer.load_state_dict(state)
    for seed in range(STEPS):
        step(plain, expected, seed)
        step(changed, optimizer, seed)
    torch.testing.assert_close(changed.weight, plain.weight)
    assert changed.weight.is_contiguous(memory_format=then)


@pytest.mark.slow
def test_training_loads_no_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINS, *STAGES],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
