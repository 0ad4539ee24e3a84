"""Photographs that claim more than they hold, and what is no photograph: one line, soon."""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.limits import outcome, refused
from PIL import Image

from qdmr_ray.photographs.decode import probe_image, read_image
from qdmr_ray.photographs.files import read_photograph

DECODERS: list[Callable[[Path], Any]] = [read_photograph, read_image]
READERS = [*DECODERS, probe_image]


def jpeg(height: int, width: int) -> bytes:
    """A JPEG of 8 x 8 pixels whose header says another size."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def png(side: int, depth: int = 8) -> bytes:
    """A PNG of a few bytes whose header, with a right checksum, says another size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", side, side, depth, 6, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    side: int, *, bits: int = 8, tags: Sequence[tuple[int, int]] = (), pages: int = 1
) -> bytes:
    """A deflated grey TIFF of 8 x 8 pixels that says another size, with more tags of 32 bits."""
    pixels = zlib.compress(bytes(8 * bits))
    data = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
    strip = {256: side, 257: side, 258: bits, 259: 8, 262: 1, 273: 8, 277: 1, 279: len(pixels)}
    entries = sorted((strip | dict(tags)).items())
    page = struct.pack("<H", len(entries))
    page += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    length = len(page) + 4
    nexts = [*(len(data) + number * length for number in range(1, pages)), 0]
    return data + b"".join(page + struct.pack("<I", place) for place in nexts)


def webp(side: int) -> bytes:
    """A lossless WebP whose header says another size, in 14 bits a side."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", lossless=True)
    data = bytearray(buffer.getvalue())
    at = data.index(b"VP8L") + 9
    header = int.from_bytes(data[at : at + 4], "little") >> 28 << 28
    data[at : at + 4] = (header | (side - 1) << 14 | (side - 1)).to_bytes(4, "little")
    return bytes(data)


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


TILE = [(322, 60_000), (323, 60_000), (324, 8), (325, 99)]
CLAIMS = {
    "a JPEG that claims 65,500 squared": jpeg(65_500, 65_500),
    "a JPEG that claims 20,000 squared": jpeg(20_000, 20_000),
    "a JPEG that claims one row of nothing": jpeg(0, 65_500),
    "a PNG that claims a million squared": png(1_000_000),
    "a PNG that claims 40,000 squared": png(40_000),
    "a 16-bit PNG that claims 40,000 squared": png(40_000, depth=16),
    "a PNG that claims two billion squared": png(2**31 - 1),
    "a WebP that claims 16,383 squared": webp(16_383),
    "a TIFF that claims 65,000 squared": tiff(65_000),
    "a TIFF that claims four billion squared": tiff(2**32 - 1),
    "a TIFF with a tile of 60,000 squared": tiff(8, tags=TILE),
    "a 16-bit TIFF with a tile of 60,000 squared": tiff(8, bits=16, tags=TILE),
    "a 16-bit TIFF of a billion layers": tiff(8, bits=16, tags=[(32997, 10**9)]),
    "a 16-bit TIFF that claims 65,000 squared": tiff(65_000, bits=16),
    "PostScript, which an interpreter would draw": picture("EPS"),
    "an icon": picture("ICO"),
    "a Targa picture": picture("TGA"),
    "nothing": b"",
    "the beginning of a JPEG": jpeg(8, 8)[:20],
    "an escape sequence": b"\x1b[31m",
}


@pytest.mark.parametrize("read", DECODERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("data", CLAIMS.values(), ids=CLAIMS)
def test_files_that_hold_no_such_picture(read: Any, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    refused(lambda: read(tmp_path / "a.jpg"), match=r"a\.jpg: (claims|unreadable|decoding) ")


@pytest.mark.parametrize("data", CLAIMS.values(), ids=CLAIMS)
def test_a_probe_looks_at_the_header_alone(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    found = outcome(lambda: probe_image(tmp_path / "a.jpg"))
    assert found.value or re.match(rf"{tmp_path}/a\.jpg: unreadable", found.error or f"{found}")


def test_a_tiff_of_fifty_thousand_pages(tmp_path: Path) -> None:
    """Pillow would look for each page in the list of all before it."""
    (tmp_path / "a.tif").write_bytes(tiff(8, pages=50_000))
    refused(lambda: read_photograph(tmp_path / "a.tif"), match=r"a\.tif: holds several frames")


@pytest.mark.parametrize("read", READERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a pipe", "a folder"])
def test_what_is_no_file(read: Any, make: Any, tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    refused(lambda: read(tmp_path / "a.png"), match=r"a\.png: .*(pipe|folder|directory)")


@pytest.mark.parametrize("read", READERS, ids=lambda f: f.__name__)
def test_endless_files(read: Any, tmp_path: Path) -> None:
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    refused(lambda: read(tmp_path / "zero.png"), match=r"zero\.png: .*device")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(10**13)
    refused(lambda: read(tmp_path / "sparse.png"), match=r"sparse\.png: .*(memory|no image)")


@pytest.mark.slow
@pytest.mark.parametrize("read", DECODERS, ids=lambda f: f.__name__)
def test_large_photographs_are_read(read: Any, tmp_path: Path) -> None:
    """A blank picture, which shrinks most: 100 megapixels in a file of 12 kB."""
    Image.new("1", (25_000, 4000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 15_000
    assert outcome(lambda: read(tmp_path / "a.png") is not None, seconds=20).value


def test_transparency_is_composited_in_little_memory(tmp_path: Path) -> None:
    """In float64 at once, 9 megapixels would take 340 MB."""
    Image.new("LA", (3000, 3000), (99, 128)).save(tmp_path / "a.png")
    found = outcome(lambda: np.ptp(read_image(tmp_path / "a.png")).item(), memory=200_000_000)
    assert found.value == 0, found
