"""The share of its speed that each of 1 to 1,024 GPUs keeps, on paper, from measured parts.

    PYTHONPATH=. python tests/benchmarks/efficiency.py
    PYTHONPATH=. python tests/benchmarks/efficiency.py --device device.json

Each GPU keeps its batch, so n GPUs that lose nothing train n times as many samples a second. With
T the seconds of a step on one GPU and S bytes of an optimizer's gradients, an iteration takes

    T + max(0, exchange(S_generator) - h T) + exchange(S_discriminators)

since the generator's gradients travel while the discriminators' step, the share h of the step's
arithmetic, is computed; the discriminators' wait for nothing else. ``exchange`` is NCCL's own model
of an all-reduce (``ncclTopoTuneModel`` in its src/graph/tuning.cc, protocol Simple, of rings and
trees the faster one): with n GPUs on m nodes and the bandwidth B of the slowest link,

    ring: 2 (n - 1) / n S / B + 8.4 us + 2 (n - 1 - m) 3.4 us + 2 m 14 us
    tree: 2 S / (0.92 B)      + 0 us   + 2 ((n / m - 1) 28 us + log2(m) 28 us)

on one node without the terms of m. B is that of NVLink on a node, and beyond it that of a node's
network adapters together. The efficiency is T over the iteration. Nothing here has run on more
than one GPU: what it leaves out are stragglers, other traffic, and the collision of kernels that
compute with those that send.
"""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from qdmr_ray.bench.step import COUNTED_SIDE, StepBench, built_stage, components_of
from qdmr_ray.nets import UNetDiscriminator
from qdmr_ray.stages import STAGES, arithmetic

# The seconds of a recorded UDA step at full size, batch 4, crop 256, bfloat16, without LPIPS, on an
# H100 (README.md beside this file, 2026-11-26).
MEASURED = {"uda": 54.7e-3}
GPUS = (1, 2, 8, 16, 64, 256, 1024)
GPUS_PER_NODE = 8
# Bytes a second in each direction: NVIDIA's data sheet of the H100 SXM says 900 GB/s for both.
NVLINK = 450e9
# A node's network in Gbit/s.
NETWORKS = (400, 100, 25)
GRADIENTS = {"float32": 4, "bfloat16": 2}
# Blocks a second that one feed has to hand out to 1,024 workers of five iterations a second
# (datasets/README.md); 39 is the most that was measured, on two cores that did all else as well.
FEED = 160
BATCHES_PER_BLOCK = (32, 128)
# NCCL's constants in seconds, protocol Simple: the start, and a hop by NVLink and by a network.
RING = {"start": 8.4e-6, "nvlink": 3.4e-6, "network": 14e-6}
TREE = {"start": 0.0, "nvlink": 28e-6, "network": 28e-6}
TREE_BANDWIDTH = 0.92


class Step(NamedTuple):
    """One GPU's iteration: its ``seconds``, the gradients' numbers of each optimizer, and the share
    ``hidden`` of the seconds in which the generator's gradients may travel."""

    seconds: float
    generator: int
    discriminators: int
    hidden: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=Path, help="device.json of device.sh, for its steps")
    arguments = parser.parse_args()
    seconds = MEASURED if arguments.device is None else recorded(arguments.device)
    for name, measured in seconds.items():
        print("\n".join(table(name, step_of(name, measured))))


def recorded(path: Path) -> dict[str, float]:
    """Returns by stage the seconds of a recorded step without LPIPS in a device.json."""
    parts = json.loads(path.read_text())["parts"].values()
    rows = [row for part in parts for row in part["rows"] if "seconds_per_step" in row]
    return {
        row["stage"]: row["seconds_per_step"]
        for row in rows
        if row.get("build") == "recorded" and not row["backbones"]
    }


def step_of(name: str, seconds: float) -> Step:
    """Returns the stage's step at full size, from its networks and their arithmetic."""
    with torch.device("meta"):
        stage = built_stage(StepBench(stage=name))
    trained = sum(p.numel() for p in stage.generator.parameters() if p.requires_grad)
    judging = sum(p.numel() for p in stage.discriminators.parameters())
    return Step(seconds, trained, judging, hidden_share(name))


def hidden_share(name: str) -> float:
    """Returns the share of a step's arithmetic that the discriminators' step is."""
    kind, total, judging = STAGES[name], 0.0, 0.0
    with torch.device("meta"):
        image = torch.rand(1, 3, COUNTED_SIDE, COUNTED_SIDE)
        settings = arithmetic.without_backbones(kind)
        for one in kind.needed_passes(settings, components_of(name, "full"), image):
            to = one.to_input, one.to_weights
            flop = one.times * arithmetic.flop_of(one.network, one.inputs, *to)
            total += flop
            if one.to_weights and isinstance(one.network, UNetDiscriminator):
                judging += flop
    return judging / total


def exchange(count: int, gpus: int, network: float) -> float:
    """Returns the seconds of an all-reduce of ``count`` bytes over ``gpus`` GPUs on nodes of eight,
    each of which sends ``network`` bytes a second."""
    if gpus == 1:
        return 0.0
    nodes = -(-gpus // GPUS_PER_NODE)
    across = nodes if nodes > 1 else 0
    bandwidth = min(NVLINK, network) if across else NVLINK
    hops = 2 * (gpus - 1) - 2 * across
    ring = 2 * (gpus - 1) / gpus * count / bandwidth + RING["start"]
    ring += hops * RING["nvlink"] + 2 * across * RING["network"]
    tree = 2 * count / (TREE_BANDWIDTH * bandwidth) + TREE["start"]
    tree += 2 * (gpus / nodes - 1) * TREE["nvlink"] + 2 * math.log2(nodes) * TREE["network"]
    return min(ring, tree)


def efficiency(step: Step, gpus: int, gigabits: float, number_bytes: int) -> float:
    """Returns the share of ``gpus`` GPUs' speed that is left of an iteration of all of them."""
    network = gigabits * 1e9 / 8
    first, second = (
        exchange(count * number_bytes, gpus, network)
        for count in (step.generator, step.discriminators)
    )
    waits = max(0.0, first - step.hidden * step.seconds) + second
    return step.seconds / (step.seconds + waits)


def table(name: str, step: Step) -> Iterable[str]:
    """Yields the lines of a stage's table, and below it where it breaks."""
    megabytes = [count * GRADIENTS["float32"] / 1e6 for count in step[1:3]]
    yield (
        f"{name}: {step.seconds * 1e3:.1f} ms a step on one GPU, gradients of {megabytes[0]:.1f} MB"
        f" (generator) and {megabytes[1]:.1f} MB (discriminators) in float32, {step.hidden:.0%} of"
        " the arithmetic after the generator's step"
    )
    ways = [(speed, kind) for speed in NETWORKS for kind in GRADIENTS]
    heads = [f"{speed} Gbit/s, {kind}" for speed, kind in ways]
    feeds = [f"blocks/s at {batches} batches" for batches in BATCHES_PER_BLOCK]
    yield f"\n| GPUs | {' | '.join([*heads, *feeds])} |"
    yield "| --- " * (1 + len(heads) + len(feeds)) + "|"
    for gpus in GPUS:
        shares = [efficiency(step, gpus, speed, GRADIENTS[kind]) for speed, kind in ways]
        blocks = [gpus / (step.seconds * batches) for batches in BATCHES_PER_BLOCK]
        cells = [*(f"{share:.0%}" for share in shares), *(f"{rate:.3g}" for rate in blocks)]
        yield f"| {gpus} | {' | '.join(cells)} |"
    yield ""
    for speed, kind in ways:
        told = ", ".join(
            f"below {least:.0%} {first_below(step, speed, GRADIENTS[kind], least)}"
            for least in (0.9, 0.5)
        )
        yield f"- {speed} Gbit/s, {kind}: {told}"
    for batches in BATCHES_PER_BLOCK:
        most = int(FEED * step.seconds * batches)
        yield f"- {FEED} blocks/s of {batches} batches feed {most} GPUs"


def first_below(step: Step, gigabits: float, number_bytes: int, least: float) -> str:
    """Returns the first number of GPUs in ``GPUS`` whose efficiency is below ``least``."""
    below = [n for n in GPUS if efficiency(step, n, gigabits, number_bytes) < least]
    return f"from {below[0]} GPUs on" if below else "nowhere"


if __name__ == "__main__":
    main()
