"""The time of a crop of 256 out of a 1920 x 1280 photograph, in the layouts that were weighed.

    python tests/benchmarks/layouts.py

First a photograph of scikit-image with sensor noise, 24 copies: milliseconds for one crop on one
core, bytes for the whole photograph, and the checksums that were weighed on the rows of a crop.

Then whole rows against vertical strips of several widths, 32 photographs in a file, pairs of crops
in random places: from a mapped file, and from the HTTP server of ``store_reads.py`` in a process of
its own, with 16 requests at a time. The checksums of all bands are computed unless it says so.
"""

import hashlib
import io
import math
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from file_store import serving
from PIL import Image
from skimage import data

from qdmr_ray.data.format.layout import BAND_ROWS, band_checksums, pieces, stored
from qdmr_ray.storage import Location, open_location

HEIGHT, WIDTH, CROP, COPIES = 1280, 1920, 256, 24
NOISE = 1.5
# Widths of strips; as wide as the photograph is whole rows.
STRIPS = (WIDTH, 256, 384, 512, 640, 960)
PHOTOGRAPHS, REQUESTS, PLACES = 32, 16, 512
# Seconds before an answer, bytes a second of all answers together, pairs of crops that are timed.
STORES = ((0.0, math.inf, 512), (0.005, math.inf, 512), (0.005, 125e6, 128))

Place = tuple[int, int, int]


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
        tops = range(0, HEIGHT, BAND_ROWS)
        bands = [lines[0][top : top + BAND_ROWS].tobytes() for top in tops]
        packed = [pa.compress(band, codec=codec, asbytes=True) for band in bands]
        # A crop that is not aligned touches five bands.
        touched = list(zip(packed[:5], map(len, bands[:5]), strict=True))

        def unpack(codec: str = codec, touched: list[tuple[bytes, int]] = touched) -> None:
            for band, size in touched:
                pa.decompress(band, size, codec=codec)

        _tell(f"lines, {codec} bands", unpack, sum(map(len, packed)), 20)
    rows = lines[0][: 5 * BAND_ROWS]
    _tell("CRC-32 of five bands", lambda: zlib.crc32(rows.data), rows.nbytes)
    _tell("SHA-256 of five bands", lambda: hashlib.sha256(rows.data).digest(), rows.nbytes)
    with tempfile.TemporaryDirectory() as name:
        _strips(Path(name), random)


def _strips(folder: Path, random: np.random.Generator) -> None:
    """Tells what a crop costs in strips of every width."""
    for strip in STRIPS:
        with (folder / str(strip)).open("wb") as file:
            for _ in range(PHOTOGRAPHS):
                image = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
                file.write(stored(image, strip).data)
    limits = (PHOTOGRAPHS // 2, HEIGHT - CROP + 1, WIDTH - CROP + 1)
    places: list[Place] = [tuple(map(int, random.integers(limits))) for _ in range(PLACES)]
    for strip in STRIPS:
        asked = [pieces((HEIGHT, WIDTH), strip, *_window(place)) for place in places]
        sizes = [sum(math.prod(piece.shape) for piece in found) for found in asked]
        requests = sum(map(len, asked)) / len(asked)
        told = f"{np.mean(sizes) / 1e6:.2f} MB, at most {max(sizes) / 1e6:.2f}"
        mapped = np.asarray(np.memmap(folder / str(strip), dtype=np.uint8, mode="r"))
        times = [_mapped_milliseconds(strip, places, mapped, check) for check in (False, True)]
        print(
            f"strips of {strip:4}: {requests:.2f} requests, {told}; mapped {times[1]:.3f} ms, "
            f"{times[0]:.3f} without checksums"
        )
    for latency, rate, count in STORES:
        print(f"a store with {latency * 1e3:.0f} ms of latency and {rate / 1e6:.0f} MB/s:")
        with serving(folder, latency=latency, rate=rate) as endpoint:
            for strip in STRIPS:
                file = open_location(f"s3://bucket/{strip}", endpoint=endpoint)
                _tell_store(strip, places[:count], file)


def _window(place: Place) -> tuple[tuple[int, int], tuple[int, int]]:
    _, top, left = place
    return (top, top + CROP), (left, left + CROP)


def _cut(
    out: np.ndarray, strip: int, place: Place, source: np.ndarray | Location, check: bool
) -> None:
    """Cuts one crop out of a mapped file or a store."""
    image, top, left = place
    for piece in pieces((HEIGHT, WIDTH), strip, *_window(place)):
        start, length = image * HEIGHT * WIDTH * 3 + piece.offset, math.prod(piece.shape)
        if isinstance(source, Location):
            read = np.frombuffer(source.read_piece(start, length)[0], dtype=np.uint8)
        else:
            read = source[start : start + length]
        lines = read.reshape(piece.shape)
        if check:
            band_checksums([lines])
        near, far = max(left, piece.left), min(left + CROP, piece.left + lines.shape[2])
        view = lines[top - piece.top :][:CROP, :, near - piece.left : far - piece.left]
        out[:, :, near - left : far - left] = view.transpose(1, 0, 2)


def _mapped_milliseconds(
    strip: int, places: Sequence[Place], mapped: np.ndarray, check: bool
) -> float:
    out = np.empty((3, CROP, CROP), dtype=np.uint8)
    best = math.inf
    # The first pass brings the file's pages into this process.
    for _ in range(4):
        start = time.process_time()
        for place in places:
            _cut(out, strip, place, mapped, check)
        best = min(best, time.process_time() - start)
    return best / len(places) * 1e3


def _tell_store(strip: int, places: Sequence[Place], file: Location) -> None:
    outs = np.zeros((len(places), 2, 3, CROP, CROP), dtype=np.uint8)

    def pair(number: int) -> None:
        image, top, left = places[number]
        for side, out in enumerate(outs[number]):
            _cut(out, strip, (2 * image + side, top, left), file, check=True)

    with ThreadPoolExecutor(REQUESTS) as threads:
        list(threads.map(pair, range(REQUESTS)))
        start, used = time.perf_counter(), time.process_time()
        list(threads.map(pair, range(len(places))))
        seconds, used = time.perf_counter() - start, time.process_time() - used
    rate, cost = len(places) / seconds, used / len(places) / 2 * 1e3
    print(f"  strips of {strip:4}: {rate:5.0f} pairs/s, {cost:.2f} ms CPU a crop")


def _tell(name: str, work: Callable[[], object], size: int, repeats: int = 300) -> None:
    work()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    milliseconds = (time.perf_counter() - start) / repeats * 1e3
    print(f"{name:24} {milliseconds:8.3f} ms  {size / 1e6:6.2f} MB")


if __name__ == "__main__":
    main()
