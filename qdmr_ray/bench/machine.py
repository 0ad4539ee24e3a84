"""This machine's rates beside the matrix product's, and the command lines of the benches."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from qdmr_ray.errors import SettingsError
from qdmr_ray.stages import ComputeSettings
from qdmr_ray.stages.arithmetic import GIGA, best_seconds, kind_of
from qdmr_ray.stages.compute import tensor_float_32

# Side of the convolved maps.
_CONVOLVED_SIDE = 64
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


def convolution_rate(device: torch.device, compute: ComputeSettings) -> float:
    """Returns the GFLOP/s of a 3 x 3 convolution of 256 channels, the best of some repeats."""
    batch, channels, side, layout = 4, 256, _CONVOLVED_SIDE, compute.memory_format
    images, weight = (
        torch.randn(shape, device=device, dtype=kind_of(compute)).contiguous(memory_format=layout)
        for shape in ((batch, channels, side, side), (channels, channels, 3, 3))
    )
    work = partial(nn.functional.conv2d, images, weight, padding=1)
    with tensor_float_32(compute, device):
        return 2 * batch * side**2 * channels**2 * 9 / best_seconds(work, device) / GIGA


def copy_rate(device: torch.device) -> float:
    """Returns the bytes read and written per second when a large tensor is copied."""
    values = torch.zeros(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(values).copy_, values)
    return 2 * values.numel() / best_seconds(copy, device)


def forget_peak_memory(device: torch.device) -> None:
    """Begins :func:`peak_memory` anew on a GPU, after what an earlier bench of this process took; a
    process keeps its peak."""
    if device.type == "cuda":
        # Until CUDA has started there are no statistics, and it starts by itself only for a device
        # without a number.
        torch.cuda.init()
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
