"""Measures the seconds and memory to correct one photograph, beside the floor of its arithmetic.

    qdmr bench restore --height 640 --width 960
    python -m qdmr_ray.bench.restore --height 4000 --width 6000 --device cuda --dtype bfloat16

The second form needs PyTorch and NumPy alone. The network is full-size, the image random, and lies
in the host's memory before and after. The floor is the arithmetic of the network's forward pass, by
PyTorch's flop counter, over the rate of a large matrix product in the same run.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from qdmr_ray.bench import machine
from qdmr_ray.bench.step import COUNTED_SIDE, PRESETS, SEED
from qdmr_ray.nets import QDMR
from qdmr_ray.restore.device import usable_device
from qdmr_ray.restore.room import room_on
from qdmr_ray.restore.streamed import restore_pixels
from qdmr_ray.stages import arithmetic
from qdmr_ray.stages.compute import BFLOAT16, FLOAT32, ComputeSettings

DTYPES = (FLOAT32, BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class RestoreBench:
    """The settings of the bench: the median of ``repeats`` photographs, after a small one, on a GPU
    also after one of the same size, whose kernels are loaded and whose memory is taken."""

    height: int = 640
    width: int = 960
    device: str = "cpu"
    dtype: str = FLOAT32
    memory: int | None = None
    preset: str = "full"
    repeats: int = 3
    threads: int | None = None


def bench_restore(bench: RestoreBench) -> dict[str, Any]:
    """Times whole photographs, and the machine's rates in the same process; returns the settings in
    force and the results. Raises SettingsError where the device is unknown or not there."""
    device, compute = usable_device(bench.device), ComputeSettings(dtype=bench.dtype)
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    machine.forget_peak_memory(device)
    torch.manual_seed(SEED)
    network = QDMR(PRESETS[bench.preset][0]).to(device).to(memory_format=torch.channels_last).eval()
    random = np.random.default_rng(SEED)
    image = random.integers(0, 256, (bench.height, bench.width, 3), dtype=np.uint8)
    correct = partial(
        restore_pixels, network, memory=bench.memory, bfloat16=bench.dtype == BFLOAT16
    )
    correct(image[: network.multiple, : network.multiple])
    room = room_on(device, bench.memory)
    repeats = bench.repeats + (device.type == "cuda")
    seconds = [arithmetic.timed(lambda: correct(image), device) for _ in range(repeats)]
    typical, peak = median(seconds[-bench.repeats :]), machine.peak_memory(device)
    needed = needed_flop_of_photograph(bench.preset, bench.height, bench.width)
    rates = arithmetic.matrix_rate(device, compute), machine.convolution_rate(device, compute)
    in_force = {"device": machine.device_name(device), "threads": torch.get_num_threads()}
    in_force |= {"memory": room.maps, "strip_bytes": room.cache or room.strip}
    return {
        **asdict(bench) | in_force,
        **machine.against_floor(typical, needed, *rates, peak),
        "seconds": typical,
        "first_seconds": seconds[0],
        "megapixels_per_second": bench.height * bench.width / 1e6 / typical,
    }


def needed_flop_of_photograph(preset: str, height: int, width: int) -> float:
    """Counts the network's floating-point operations on such a photograph, padding included."""
    network = QDMR(PRESETS[preset][0])
    tiles = math.prod(-(-side // network.multiple) for side in (height, width))
    counted = torch.rand(1, 3, COUNTED_SIDE, COUNTED_SIDE)
    flop = arithmetic.flop_of(lambda x: network(x).image, counted, to_input=False, to_weights=False)
    return flop * tiles * network.multiple**2 / COUNTED_SIDE**2


def main(arguments: list[str] | None = None) -> None:
    """Runs the bench where the ``qdmr`` command and what it needs are not installed."""
    choices = {"preset": PRESETS, "dtype": DTYPES}
    machine.run_alone(RestoreBench(), bench_restore, choices=choices, arguments=arguments)


if __name__ == "__main__":
    main()
