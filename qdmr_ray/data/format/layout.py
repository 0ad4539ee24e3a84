"""How the pixels of a photograph lie in its shard: in vertical strips, each checked by bands.

A strip is ``STRIP_PIXELS`` wide, the last one as wide as what is left, and the strips follow one
another from left to right. Each is raw uint8 (height, 3, width of the strip), interleaved by line:
one row of red, the same row of green, of blue, then the next. A crop of up to 512 pixels thus lies
in one strip or two, each of them one range of the file. Datasets of format 2 have no
``strip_pixels``: their only strip is as wide as the photograph.

A strip is checked by bands of ``BAND_ROWS`` rows, so that a crop can be checked without reading the
whole photograph. The bands are numbered as they lie in the file: those of the first strip from the
top, then those of the next.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

CHANNELS = 3
BAND_ROWS = 64
# Narrower strips save bytes and take more requests (``shards`` has the figures).
STRIP_PIXELS = 512


class Piece(NamedTuple):
    """Whole bands of one strip, which lie in one range of the file: ``offset`` counts bytes from
    the photograph's first, ``shape`` is (rows, 3, width), the first pixel is at (top, left) of the
    photograph, and ``bands`` are the numbers of its bands."""

    offset: int
    shape: tuple[int, int, int]
    top: int
    left: int
    bands: slice


def pieces(
    size: tuple[int, int],
    strip_pixels: int | None,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> list[Piece]:
    """Returns where pixels of ``rows`` and ``columns`` (the first, and the one after the last) of a
    photograph of ``size`` (height, width) lie, in the order of the file."""
    height, width = size
    strip = strip_pixels or width
    # Only whole bands can be checked.
    first, end, in_strip = rows[0] // BAND_ROWS, -(-rows[1] // BAND_ROWS), -(-height // BAND_ROWS)
    top, bottom = first * BAND_ROWS, min(end * BAND_ROWS, height)
    found = []
    for number in range(columns[0] // strip, (columns[1] - 1) // strip + 1):
        left = number * strip
        own = min(strip, width - left)
        found.append(
            Piece(
                offset=CHANNELS * (height * left + top * own),
                shape=(bottom - top, CHANNELS, own),
                top=top,
                left=left,
                bands=slice(number * in_strip + first, number * in_strip + end),
            )
        )
    return found


def runs(found: Sequence[Piece]) -> list[list[Piece]]:
    """Groups pieces that follow one another in the file, each strip's being whole, in one range."""
    grouped: list[list[Piece]] = []
    end = None
    for piece in found:
        if piece.offset == end:
            grouped[-1].append(piece)
        else:
            grouped.append([piece])
        end = piece.offset + math.prod(piece.shape)
    return grouped


def count_bands(heights: np.ndarray, widths: np.ndarray, strip_pixels: int | None) -> np.ndarray:
    """Returns how many bands photographs of these sizes have, int64 (N,)."""
    in_strip = -(-heights.astype(np.int64) // BAND_ROWS)
    return in_strip if strip_pixels is None else in_strip * -(-widths // strip_pixels)


def strips(pixels: np.ndarray, size: tuple[int, int], strip_pixels: int | None) -> list[np.ndarray]:
    """Returns views of the strips (height, 3, width of the strip) of a photograph of ``size``
    (height, width), whose ``pixels`` are uint8 (3 * height * width,) as they lie in the file."""
    height, width = size
    ends = CHANNELS * height * np.arange(strip_pixels or width, width, strip_pixels or width)
    return [strip.reshape(height, CHANNELS, -1) for strip in np.split(pixels, ends)]


def stored(image: np.ndarray, strip_pixels: int | None) -> np.ndarray:
    """Returns ``image``, uint8 (H, W, 3), as it lies in the file, uint8 (3 * H * W,)."""
    pixels = np.empty(image.size, dtype=np.uint8)
    left = 0
    for strip in strips(pixels, image.shape[:2], strip_pixels):
        right = left + strip.shape[2]
        strip[:] = image[:, left:right].transpose(0, 2, 1)
        left = right
    return pixels


def lines(parts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the lines of a photograph from the top, uint8 (rows, 3, W), C-contiguous, some at a
    time, whatever the strips ``parts`` that it lies in."""
    for top in range(0, len(parts[0]), BAND_ROWS):
        yield np.concatenate([strip[top : top + BAND_ROWS] for strip in parts], axis=2)


def band_checksums(parts: Sequence[np.ndarray]) -> list[int]:
    """Returns the CRC-32 of every band of the strips ``parts``, C-contiguous, by its number."""
    tops = range(0, len(parts[0]), BAND_ROWS)
    return [zlib.crc32(strip[top : top + BAND_ROWS].data) for strip in parts for top in tops]
