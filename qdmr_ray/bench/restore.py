"""Seconds and memory to correct one photograph, beside the floor that its arithmetic sets.

    qdmr bench restore --height 640 --width 960
    python -m qdmr_ray.bench.restore --height 4000 --width 6000 --device cuda --dtype bfloat16

The second form needs PyTorch and NumPy alone. The network is full-size, the image random; the floor
is what PyTorch's flop counter says of the network's forward pass, over the rate of a large matrix
product in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from qdmr_ray.bench.step import (
    COUNTED_SIDE,
    GIGA,
    PRESETS,
    SEED,
    convolution_rate,
    device_name,
    flop_of,
    matrix_rate,
    peak_memory,
    timed,
)
from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import QDMR
from qdmr_ray.restore.device import usable_device
from qdmr_ray.restore.streamed import DEFAULT_MEMORY, restore_pixels
from qdmr_ray.stages.compute import BFLOAT16, FLOAT32, ComputeSettings

DTYPES = (FLOAT32, BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class RestoreBench:
    """What is timed: the median of ``repeats`` photographs, after a small one."""

    height: int = 640
    width: int = 960
    device: str = "cpu"
    dtype: str = FLOAT32
    memory: int = DEFAULT_MEMORY
    preset: str = "full"
    repeats: int = 3
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class RestoreFigures:
    """``ratio`` is seconds / floor_seconds, ``ratio_convolution`` the same with the rate of a
    convolution; peak memory is the allocator's on a GPU, the process's otherwise."""

    seconds: float
    megapixels_per_second: float
    peak_memory_bytes: int
    gflop_needed: float
    gflops_measured: float
    floor_seconds: float
    ratio: float
    gflops_convolution: float
    ratio_convolution: float
    height: int
    width: int
    device: str
    dtype: str
    threads: int
    torch: str


def bench_restore(bench: RestoreBench) -> RestoreFigures:
    """Times whole photographs, and the machine's rates in the same process.

    Raises:
        SettingsError: the device is unknown or not there.
    """
    device = usable_device(bench.device)
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    torch.manual_seed(SEED)
    network = QDMR(PRESETS[bench.preset][0]).to(device).to(memory_format=torch.channels_last).eval()
    random = np.random.default_rng(SEED)
    image = random.integers(0, 256, (bench.height, bench.width, 3), dtype=np.uint8)
    correct = partial(
        restore_pixels, network, memory=bench.memory, bfloat16=bench.dtype == BFLOAT16
    )
    correct(image[: network.multiple, : network.multiple])
    seconds = [timed(lambda: correct(image), device) for _ in range(bench.repeats)]
    peak = peak_memory(device)
    rate = matrix_rate(device, bench.dtype)
    convolution = convolution_rate(device, ComputeSettings(dtype=bench.dtype))
    needed = needed_flop_of_photograph(bench.preset, bench.height, bench.width) / GIGA
    median = statistics.median(seconds)
    return RestoreFigures(
        seconds=median,
        megapixels_per_second=bench.height * bench.width / 1e6 / median,
        peak_memory_bytes=peak,
        gflop_needed=needed,
        gflops_measured=rate,
        floor_seconds=needed / rate,
        ratio=median * rate / needed,
        gflops_convolution=convolution,
        ratio_convolution=median * convolution / needed,
        height=bench.height,
        width=bench.width,
        device=device_name(device),
        dtype=bench.dtype,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def needed_flop_of_photograph(preset: str, height: int, width: int) -> float:
    """Floating-point operations of the network on such a photograph, padded as it must be."""
    network = QDMR(PRESETS[preset][0])
    pixels = 1
    for side in (height, width):
        pixels *= -(-side // network.multiple) * network.multiple
    counted = torch.rand(1, 3, COUNTED_SIDE, COUNTED_SIDE)
    return flop_of(lambda x: network(x).image, counted) * pixels / COUNTED_SIDE**2


def main(arguments: list[str] | None = None) -> None:
    """The command line where the ``qdmr`` command and what it needs are not installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    default = RestoreBench()
    parser.add_argument("--preset", choices=PRESETS, default=default.preset)
    parser.add_argument("--dtype", choices=DTYPES, default=default.dtype)
    parser.add_argument("--device", default=default.device)
    for name in ("height", "width", "memory", "repeats", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    bench = RestoreBench(**vars(parser.parse_args(arguments)))
    try:
        figures = bench_restore(bench)
    except SettingsError as error:
        parser.error(str(error))
    print(json.dumps(asdict(figures), indent=1))


if __name__ == "__main__":
    main()
