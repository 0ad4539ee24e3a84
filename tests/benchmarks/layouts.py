"""The time of a crop of 256 out of a 1920 x 1280 photograph, in the layouts that were weighed.

    python tests/benchmarks/layouts.py

A photograph of scikit-image with sensor noise, 24 copies; milliseconds for one crop on one core,
bytes for the whole photograph, and the checksums that were weighed on the rows of a crop.
"""

from __future__ import annotations

import hashlib
import io
import time
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from PIL import Image
from skimage import data

HEIGHT, WIDTH, CROP, BAND, COPIES = 1280, 1920, 256, 64, 24
NOISE = 1.5


def main() -> None:
    random = np.random.default_rng(0)
    scaled = Image.fromarray(data.coffee()).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    noisy = np.asarray(scaled) + random.normal(0, NOISE, (HEIGHT, WIDTH, 3))
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    planes = [np.ascontiguousarray(pixels.transpose(2, 0, 1)) for _ in range(COPIES)]
    lines = [np.ascontiguousarray(pixels.transpose(0, 2, 1)) for _ in range(COPIES)]
    whole = [pixels.copy() for _ in range(COPIES)]
    out = np.empty((3, CROP, CROP), dtype=np.uint8)

    def place() -> tuple[int, slice, slice]:
        top, left = random.integers(HEIGHT - CROP + 1), random.integers(WIDTH - CROP + 1)
        return int(random.integers(COPIES)), slice(top, top + CROP), slice(left, left + CROP)

    def from_whole() -> None:
        i, rows, columns = place()
        out[:] = whole[i][rows, columns].transpose(2, 0, 1)

    def from_planes() -> None:
        i, rows, columns = place()
        out[:] = planes[i][:, rows, columns]

    def from_lines() -> None:
        i, rows, columns = place()
        out[:] = lines[i][rows, :, columns].transpose(1, 0, 2)

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    png = buffer.getvalue()
    _tell("PNG", lambda: np.asarray(Image.open(io.BytesIO(png))), len(png), 5)
    for name, cut in (("(H, W, 3)", from_whole), ("(3, H, W)", from_planes)):
        _tell(f"raw {name}", cut, pixels.nbytes)
    _tell("raw (H, 3, W)", from_lines, pixels.nbytes)
    for codec in ("zstd", "lz4"):
        bands = [lines[0][top : top + BAND].tobytes() for top in range(0, HEIGHT, BAND)]
        packed = [pa.compress(band, codec=codec, asbytes=True) for band in bands]
        # A crop that is not aligned touches five bands.
        touched = list(zip(packed[:5], map(len, bands[:5]), strict=True))

        def unpack(codec: str = codec, touched: list[tuple[bytes, int]] = touched) -> None:
            for band, size in touched:
                pa.decompress(band, size, codec=codec)

        _tell(f"lines, {codec} bands", unpack, sum(map(len, packed)), 20)
    rows = lines[0][: 5 * BAND]
    _tell("CRC-32 of five bands", lambda: zlib.crc32(rows.data), rows.nbytes)
    _tell("SHA-256 of five bands", lambda: hashlib.sha256(rows.data).digest(), rows.nbytes)


def _tell(name: str, work: Callable[[], object], size: int, repeats: int = 300) -> None:
    work()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    milliseconds = (time.perf_counter() - start) / repeats * 1e3
    print(f"{name:24} {milliseconds:8.3f} ms  {size / 1e6:6.2f} MB")


if __name__ == "__main__":
    main()
