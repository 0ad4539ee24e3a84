"""Shows whether faster arithmetic trains alike: loss curves, a reference's, and their noise.

    python tests/benchmarks/loss_curves.py --stage base --builds bfloat16
    python tests/benchmarks/loss_curves.py --stage uda --device cuda --size 256 --batch 4 \\
        --reference plain --noise bfloat16+graph --builds bfloat16+graph tf32

Needs PyTorch and NumPy alone. Photographs are dead leaves (discs of many sizes that cover each
other: edges and flat areas with the statistics of natural images; Lee, Mumford & Huang, IJCV
2001), blurred by one kernel as the source and by a wider one as the target. Base and UDA start from
a VQGAN that was trained before, as long.

Every build sees the same crops from the same weights. The noise is what other crops change: one
build on three orders. Curves are means over windows of 20 iterations; for each logged term the
largest distance between a build and the reference stands beside the largest between two orders, as
shares of the term's mean. ``--noise`` names the build that is trained on the orders and trains the
VQGAN: a fast one where the reference takes long.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qdmr_ray.bench.step import PRESETS, StepBench, stage_of
from qdmr_ray.nets import VQGAN
from qdmr_ray.stages import STAGES, Stage, flush_denormals

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
    parser.add_argument("--stage", choices=STAGES, default="base")
    parser.add_argument("--reference", default="float32")
    parser.add_argument("--noise", default="float32")
    parser.add_argument("--builds", nargs="+", default=["bfloat16"])
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write all curves to this file")
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
    noisy = build_called(bench, arguments.noise)
    vqgan: VQGAN | None = None
    if arguments.stage in ("base", "uda"):
        first = stage_of(replace(noisy, stage="vqgan"))
        trained(first, bench, photographs, arguments.iterations, order=0)
        vqgan = first.result()
        assert isinstance(vqgan, VQGAN)

    found: dict[str, Curves] = {}

    def curves_of(build: str, order: int = 0) -> Curves:
        name = f"{build}, order {order}"
        if name not in found:
            chosen = build_called(bench, build)
            found[name] = run(chosen, name, vqgan, photographs, arguments.iterations, order)
        return found[name]

    orders = [curves_of(arguments.noise, order) for order in range(ORDERS)]
    reference = curves_of(arguments.reference)
    for build in arguments.builds:
        curves = curves_of(build)
        print(f"{build}: largest distance from {arguments.reference} (between two orders)")
        for term in told(reference):
            level = np.abs(reference[term]).mean()
            apart = np.abs(curves[term] - reference[term]).max() / level
            noise = max(np.abs(a[term] - b[term]).max() for a, b in combinations(orders, 2)) / level
            verdict = "within" if apart <= noise else "OUTSIDE"
            print(f"  {term:32} {apart:8.2%} ({noise:8.2%})  {verdict}")
    if arguments.json:
        plain = {name: {t: c.tolist() for t, c in x.items()} for name, x in found.items()}
        arguments.json.write_text(json.dumps(plain))


def build_called(bench: StepBench, name: str) -> StepBench:
    """``plain``, or a dtype with or without ``+graph`` and ``+compile``."""
    if name == "plain":
        return replace(bench, plain=True)
    dtype, *extras = name.split("+")
    return replace(bench, dtype=dtype, compile="compile" in extras, cuda_graph="graph" in extras)


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
    """Means over windows of every logged value, by name."""
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
    image = np.zeros((3, side, side), dtype=np.float32)
    smallest, largest = 2.0, side / 4
    for share in chance.uniform(size=400):
        radius = (smallest**-2 + share * (largest**-2 - smallest**-2)) ** -0.5
        centre = chance.uniform(0, side, 2)
        # Only the square around the disc: the whole image for every disc takes long.
        low = np.maximum(centre - radius, 0).astype(int)
        high = np.minimum(centre + radius + 1, side).astype(int)
        y, x = np.ogrid[low[0] : high[0], low[1] : high[1]]
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
        image[:, low[0] : high[0], low[1] : high[1]][:, inside] = chance.uniform(size=(3, 1))
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
