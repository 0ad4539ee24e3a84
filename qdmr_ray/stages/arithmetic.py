"""The arithmetic that training steps need by the method, and the rate at which a device can do it.

METHOD.md, not a stage's implementation, says what is needed: a trained network takes a forward and
a backward pass; a discriminator in the generator's step a forward pass and a backward pass to its
input; a frozen network a forward pass. LPIPS and the semantic term are left out.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qdmr_ray.nets import UNetDiscriminator
from qdmr_ray.stages import STAGES, build_stage
from qdmr_ray.stages.components import Components
from qdmr_ray.stages.compute import BFLOAT16, ComputeSettings, tensor_float_32
from qdmr_ray.stages.settings import StageSettings
from qdmr_ray.stages.stage import Stage

GIGA = 1e9
# Side of the multiplied matrices: arithmetic bounds so large a product, yet it takes under a
# second.
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_REPEATS = 12


def needed_flop(
    stage: type[Stage], settings: StageSettings, components: Components, side: int
) -> float:
    """Counts the floating-point operations that a step of ``stage`` needs for each sample of the
    batch, a square of ``side`` pixels, by PyTorch's flop counter on each network; 0 where the stage
    doesn't say. Nothing is computed, and the trained networks in ``components`` don't matter."""
    # On "meta", tensors have shapes and no values.
    with torch.device("meta"):
        components = with_untrained(stage, components)
        passes = stage.needed_passes(settings, components, torch.rand(1, 3, side, side))
        return sum(p.times * flop_of(p.network, p.inputs, p.to_input, p.to_weights) for p in passes)


def with_untrained(stage: type[Stage], components: Components) -> Components:
    """Returns ``components`` with a network of random weights for each stage that ``stage`` starts
    from."""
    untrained = {
        name: build_stage(
            name, without_backbones(STAGES[name]), with_untrained(STAGES[name], components)
        ).network
        for name in stage.needs
    }
    return replace(components, trained=untrained)


def without_backbones(stage: type[Stage]) -> StageSettings:
    """Returns the stage's defaults without the terms that need downloaded weights."""
    switched_off: dict[str, Any] = dict.fromkeys(stage.backbones, 0)
    return stage.settings_type(**switched_off)


def flop_of(
    network: Callable[[Tensor], Tensor], inputs: Tensor, to_input: bool, to_weights: bool
) -> float:
    """Counts operations of a forward pass, and of a backward pass to the input, the weights or
    both. A discriminator's estimates of its spectral norms are left out: they don't grow with the
    image."""
    inputs = inputs.clone().requires_grad_(to_input)
    if isinstance(network, nn.Module):
        network.requires_grad_(to_weights)
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(to_input or to_weights):
        out = network(inputs)
        if to_input or to_weights:
            out.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    if isinstance(network, UNetDiscriminator):
        counts.pop(torch.ops.aten.mm, None)
    return float(sum(counts.values()))


def matrix_rate(device: torch.device, compute: ComputeSettings) -> float:
    """Returns the GFLOP/s of a large matrix product, the best of ``_REPEATS``."""
    side = _MATRIX_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=kind_of(compute)) for _ in range(2))
    work = partial(torch.mm, a, b, out=torch.empty_like(a))
    with tensor_float_32(compute, device):
        return 2 * side**3 / best_seconds(work, device) / GIGA


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that ``work`` takes, with the GPU's queue empty before and after."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that ``work`` takes, the best of ``_REPEATS``."""
    return min(timed(work, device) for _ in range(_REPEATS))


def kind_of(compute: ComputeSettings) -> torch.dtype:
    """Returns the type of the numbers that most of the arithmetic takes."""
    return torch.bfloat16 if compute.dtype == BFLOAT16 else torch.float32
