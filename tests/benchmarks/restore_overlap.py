"""A folder of photographs with a stand-in for the network that sleeps as long as a GPU would take.

    PYTHONPATH=. python tests/benchmarks/restore_overlap.py [--seconds 0.2] [--photographs 12]

Prints, for JPEG and PNG files, the share of the wall time in which the stand-in works: with
``restore_files``, and with the plain loop that reads, computes and writes one after the other, in
turns in the same run.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qdmr_ray.models.files import LoadedModel
from qdmr_ray.nets import QDMR, NetworkSettings
from qdmr_ray.photographs.files import read_photograph, write_photograph
from qdmr_ray.restore import files

PICTURE = Path(__file__).parents[2] / "docs" / "demo.jpg"
# 2.5 megapixels, as in the Realab benchmark.
HEIGHT, WIDTH = 1280, 1920
# What a camera's sensor adds, which takes most of a PNG's bytes.
NOISE = 2.0
ENDINGS = (".jpg", ".png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.2, help="of the stand-in")
    parser.add_argument("--photographs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ways: dict[str, Callable[[list[Path], Path, float], None]] = {
        "one after the other": one_after_the_other,
        "restore_files": overlapping,
    }
    print(f"{os.cpu_count()} CPUs, {arguments.photographs} photographs of {HEIGHT} x {WIDTH}")
    with tempfile.TemporaryDirectory() as folder:
        for ending in ENDINGS:
            paths = photographs(Path(folder), ending, arguments.photographs)
            took: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(arguments.rounds):
                for name, way in ways.items():
                    start = time.perf_counter()
                    way(paths, Path(folder) / "out", arguments.seconds)
                    took[name].append(time.perf_counter() - start)
            for name, walls in took.items():
                wall = statistics.median(walls) / len(paths)
                told = " ".join(f"{x / len(paths):.3f}" for x in walls)
                print(f"{ending}, {name}: {arguments.seconds / wall:.0%} busy, s each {told}")


def photographs(folder: Path, ending: str, count: int) -> list[Path]:
    """Writes ``count`` photographs of one picture with noise of its own."""
    with Image.open(PICTURE) as image:
        picture = np.asarray(image.convert("RGB"), np.float32)
    short = [(0, max(0, n - side)) for n, side in zip((HEIGHT, WIDTH), picture.shape, strict=False)]
    picture = np.pad(picture, [*short, (0, 0)], mode="symmetric")[:HEIGHT, :WIDTH]
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        noisy = picture + random.normal(0, NOISE, picture.shape)
        paths.append(folder / f"{number}{ending}")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=95)
    return paths


def one_after_the_other(paths: list[Path], out: Path, seconds: float) -> None:
    out.mkdir(exist_ok=True)
    for path in paths:
        photograph = read_photograph(path)
        time.sleep(seconds)
        write_photograph(out / path.name, photograph, photograph.pixels)


def overlapping(paths: list[Path], out: Path, seconds: float) -> None:
    def restore(pixels: np.ndarray, *_: Any) -> np.ndarray:
        time.sleep(seconds)
        return pixels

    vars(files)["restore"] = restore
    model = LoadedModel(
        network=QDMR(NetworkSettings()), kind="qdmr_base", step=1, digest="", source=""
    )
    failures = files.restore_files(paths, model, out)
    assert not failures, failures


if __name__ == "__main__":
    main()
