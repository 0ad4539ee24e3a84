"""Whether faster arithmetic trains alike: loss curves beside those of float32, and their noise.

    python tests/benchmarks/loss_curves.py --stage base --builds bfloat16
    python tests/benchmarks/loss_curves.py --stage uda --device cuda --size 256 --batch 4 \\
        --builds plain tf32 bfloat16 bfloat16+compile

Needs PyTorch and NumPy alone. Photographs are dead leaves (discs of many sizes that cover each
other: edges and flat areas with the statistics of natural images; Lee, Mumford & Huang, IJCV
2001), blurred by one kernel as the source and by a wider one as the target. Base and UDA start from
a VQGAN that was trained before, as long, in float32.

Every build sees the same crops from the same weights. The noise is what other crops change: float32
on two more orders. Curves are means over windows of 20 iterations; for each logged term the largest
distance between a build and float32 stands beside the largest between two orders, as shares of the
term's mean.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from qdmr_ray.bench.step import PRESETS, STAGE_SETTINGS, StepBench, stage_of
from qdmr_ray.nets import VQGAN
from qdmr_ray.stages import Stage, flush_denormals

WINDOW = 20
ORDERS = 3
PHOTOGRAPHS = 24
# A term below this share of the sum of terms says nothing about training.
LEAST_SHARE = 1e-3
# Standard deviations of the blurs in pixels: the lens as simulated, and as made.
BLURS = {"source": 1.2, "target": 1.8}
Curves = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGE_SETTINGS, default="base")
    parser.add_argument("--builds", nargs="+", default=["bfloat16"])
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.iterations % WINDOW:
        parser.error(f"--iterations {arguments.iterations}: take a multiple of {WINDOW}")
    flush_denormals()
    bench = StepBench(
        stage=arguments.stage,
        size=arguments.size,
        batch=arguments.batch,
        device=arguments.device,
        preset=arguments.preset,
    )
    photographs = photographs_of(2 * arguments.size, arguments.device)
    vqgan: VQGAN | None = None
    if arguments.stage in ("base", "uda"):
        first = stage_of(replace(bench, stage="vqgan"))
        trained(first, bench, photographs, arguments.iterations, order=0)
        vqgan = first.result()
        assert isinstance(vqgan, VQGAN)
    found: dict[str, Curves] = {}
    for order in range(ORDERS):
        name = f"float32, order {order}"
        found[name] = run(bench, name, vqgan, photographs, arguments.iterations, order)
    orders = list(found.values())
    for name in arguments.builds:
        curves = run(build_called(bench, name), name, vqgan, photographs, arguments.iterations, 0)
        print(f"{name}: largest distance from float32 (between two orders of float32)")
        for term in told(orders[0]):
            level = np.abs(orders[0][term]).mean()
            apart = np.abs(curves[term] - orders[0][term]).max() / level
            noise = max(np.abs(a[term] - b[term]).max() for a, b in combinations(orders, 2)) / level
            verdict = "within" if apart <= noise else "OUTSIDE"
            print(f"  {term:32} {apart:8.2%} ({noise:8.2%})  {verdict}")
        found[name] = curves
    print(json.dumps({name: {t: c.tolist() for t, c in x.items()} for name, x in found.items()}))


def build_called(bench: StepBench, name: str) -> StepBench:
    """``plain``, or a dtype with or without ``+compile``."""
    if name == "plain":
        return replace(bench, plain=True)
    dtype, _, extra = name.partition("+")
    return replace(bench, dtype=dtype, compile=extra == "compile")


def run(
    bench: StepBench,
    name: str,
    vqgan: VQGAN | None,
    photographs: dict[str, Tensor],
    iterations: int,
    order: int,
) -> Curves:
    """Trains one build and says how long that took."""
    began = time.perf_counter()
    curves = trained(stage_of(bench, copy.deepcopy(vqgan)), bench, photographs, iterations, order)
    print(f"{name}: {iterations} iterations in {time.perf_counter() - began:.1f} s", flush=True)
    return curves


def trained(
    stage: Stage, bench: StepBench, photographs: dict[str, Tensor], iterations: int, order: int
) -> Curves:
    """Means over windows of every logged figure, by name."""
    chance = np.random.default_rng(order)
    lines: list[dict[str, Tensor]] = []
    for _ in range(iterations):
        lines.append(stage.step(crops(photographs, bench, chance, stage.domains)))
    return {
        name: torch.stack([line[name] for line in lines])
        .float()
        .unflatten(0, (-1, WINDOW))
        .mean(1)
        .cpu()
        .numpy()
        for name in lines[0]
    }


def told(curves: Curves) -> list[str]:
    """The terms of the losses that matter; logits and codebook usage are no terms."""
    terms = [n for n in curves if not n.endswith("_logit") and not n.startswith("codebook/")]
    total = sum(np.abs(curves[name]).mean() for name in terms)
    return [name for name in terms if np.abs(curves[name]).mean() > LEAST_SHARE * total]


def crops(
    photographs: dict[str, Tensor],
    bench: StepBench,
    chance: np.random.Generator,
    domains: Sequence[str],
) -> dict[str, Tensor]:
    """A batch; source and ground truth are of one place, the target of another."""
    side, count = photographs["source"].shape[-1], len(photographs["source"])
    batch: dict[str, list[Tensor]] = {name: [] for name in domains}
    for _ in range(bench.batch):
        places = chance.integers(0, [count, side - bench.size, side - bench.size], (2, 3))
        for name in domains:
            i, y, x = places[int(name == "target")]
            batch[name].append(photographs[name][i, :, y : y + bench.size, x : x + bench.size])
    return {name: torch.stack(images) for name, images in batch.items()}


def photographs_of(side: int, device: str) -> dict[str, Tensor]:
    """Source, target and ground truth, float32 (PHOTOGRAPHS, 3, side, side) in [0, 1]."""
    chance = np.random.default_rng(0)
    sharp = torch.stack([dead_leaves(side, chance) for _ in range(PHOTOGRAPHS)])
    images = {name: blurred(sharp, deviation) for name, deviation in BLURS.items()}
    return {name: x.to(device) for name, x in (images | {"ground_truth": sharp}).items()}


def dead_leaves(side: int, chance: np.random.Generator) -> Tensor:
    """Discs whose radii follow a power law of -3, the later ones in front; (3, side, side)."""
    y, x = np.mgrid[:side, :side]
    image = np.zeros((3, side, side), dtype=np.float32)
    smallest, largest = 2.0, side / 4
    for share in chance.uniform(size=400):
        radius = (smallest**-2 + share * (largest**-2 - smallest**-2)) ** -0.5
        centre = chance.uniform(0, side, 2)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
        image[:, inside] = chance.uniform(size=(3, 1))
    return torch.from_numpy(image)


def blurred(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of images (B, 3, H, W)."""
    reach = int(3 * deviation) + 1
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = torch.exp(-(steps**2) / (2 * deviation**2))
    line /= line.sum()
    padded = nn.functional.pad(images, (reach,) * 4, mode="reflect")
    across = nn.functional.conv2d(padded.flatten(0, 1).unsqueeze(1), line.view(1, 1, 1, -1))
    return nn.functional.conv2d(across, line.view(1, 1, -1, 1)).view(images.shape)


if __name__ == "__main__":
    main()
