"""This machine's rates, the arithmetic of a network, and the command lines of the benches."""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import UNetDiscriminator
from qdmr_ray.stages import ComputeSettings
from qdmr_ray.stages.compute import BFLOAT16, tensor_float_32

GIGA = 1e9
# Side of the multiplied matrices: arithmetic bounds so large a product, yet it takes under a
# second.
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
# Side of the convolved maps.
_CONVOLVED_SIDE = 64
_REPEATS = 12
# Larger than the last-level cache.
_COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


def against_floor(
    seconds: float, needed: float, rate: float, convolution: float, peak: int
) -> dict[str, Any]:
    """Returns a measured time beside its floor, the time that its ``needed`` operations take at the
    machine's ``rate`` in GFLOP/s.

    ``ratio`` is seconds / floor_seconds. ``ratio_convolution`` takes the rate of a convolution
    instead of the matrix product's, since convolutions may run faster (on AMD's processors they do,
    by other libraries). Peak memory is the allocator's on a GPU, the process's otherwise.
    """
    needed /= GIGA
    return {
        "gflop_needed": needed,
        "gflops_measured": rate,
        "floor_seconds": needed / rate,
        "ratio": seconds * rate / needed,
        "gflops_convolution": convolution,
        "ratio_convolution": seconds * convolution / needed,
        "peak_memory_bytes": peak,
        "torch": torch.__version__,
    }


def matrix_rate(device: torch.device, compute: ComputeSettings) -> float:
    """Returns the GFLOP/s of a large matrix product, the best of ``_REPEATS``."""
    side = _MATRIX_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=_kind(compute)) for _ in range(2))
    work = partial(torch.mm, a, b, out=torch.empty_like(a))
    with tensor_float_32(compute, device):
        return 2 * side**3 / _best(work, device) / GIGA


def convolution_rate(device: torch.device, compute: ComputeSettings) -> float:
    """Returns the GFLOP/s of a 3 x 3 convolution of 256 channels, the best of ``_REPEATS``."""
    layout = torch.channels_last if compute.channels_last else torch.contiguous_format
    batch, channels, side = 4, 256, _CONVOLVED_SIDE
    images, weight = (
        torch.randn(shape, device=device, dtype=_kind(compute)).contiguous(memory_format=layout)
        for shape in ((batch, channels, side, side), (channels, channels, 3, 3))
    )
    work = partial(nn.functional.conv2d, images, weight, padding=1)
    with tensor_float_32(compute, device):
        return 2 * batch * side**2 * channels**2 * 9 / _best(work, device) / GIGA


def copy_rate(device: torch.device) -> float:
    """Returns the bytes read and written per second when a large tensor is copied."""
    values = torch.zeros(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    return 2 * values.numel() / _best(partial(torch.empty_like(values).copy_, values), device)


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


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that ``work`` takes, with the GPU's queue empty before and after."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def forget_peak_memory(device: torch.device) -> None:
    """Begins :func:`peak_memory` anew on a GPU, after what an earlier bench of this process took; a
    process keeps its peak."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Returns the peak in bytes: the allocator's on a GPU, the process's otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Imported here: Windows has no such module.
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def run_alone(
    default: Any,
    measure: Callable[[Any], Any],
    *,
    choices: Mapping[str, Iterable[str]],
    arguments: list[str] | None,
    **others: Callable[[Any], Any],
) -> None:
    """Runs a bench's command line without ``qdmr``, with an option for every field of ``default``,
    and prints the result of ``measure`` as JSON. ``choices`` are the allowed values of some fields;
    the option ``--NAME`` of each of ``others`` prints the text that its function returns instead.
    """
    parser = argparse.ArgumentParser(description=type(default).__doc__)
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        options: dict[str, Any] = {"type": str if isinstance(value, str) else int}
        if isinstance(value, bool):
            options = {"action": argparse.BooleanOptionalAction}
        elif field.name in choices:
            options["choices"] = choices[field.name]
        parser.add_argument("--" + field.name.replace("_", "-"), default=value, **options)
    for name, other in others.items():
        parser.add_argument(f"--{name}", action="store_const", const=other, dest="measure")
    parser.set_defaults(measure=measure)
    values = vars(parser.parse_args(arguments))
    measure = values.pop("measure")
    try:
        figures = measure(dataclasses.replace(default, **values))
    except SettingsError as error:
        parser.error(str(error))
    print(figures if isinstance(figures, str) else json.dumps(figures, indent=1))


def _best(work: Callable[[], object], device: torch.device) -> float:
    return min(timed(work, device) for _ in range(_REPEATS))


def _kind(compute: ComputeSettings) -> torch.dtype:
    return torch.bfloat16 if compute.dtype == BFLOAT16 else torch.float32
