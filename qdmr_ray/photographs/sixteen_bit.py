"""Files of 16 bits a channel, which Pillow can't write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
from PIL import ExifTags, Image

from qdmr_ray.photographs.metadata import PNG_SIGNATURE, XMP_TAG, Extras, png_chunk, png_extras

# Colour types of a PNG by number of channels.
_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}
# Each row as its difference from the one above.
_PNG_FILTER_UP = 2
_ZLIB_LEVEL = 3
# Text that a 16-bit TIFF keeps: description, maker, model, software, date, artist, copyright.
_TEXT_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_BYTE, _ASCII = 1, 2
_INCH = 2


def sixteen_bit_png(
    layers: np.ndarray, *, exif: Image.Exif, profile: bytes, extras: Extras
) -> bytes:
    """uint16 (H, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA) (W3C, PNG Specification)."""
    height, width, channels = layers.shape
    rows = np.ascontiguousarray(layers.astype(">u2")).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), dtype=np.uint8)
    filtered[:, 0] = _PNG_FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR[channels], 0, 0, 0)
    parts = [PNG_SIGNATURE, png_chunk(b"IHDR", header), png_extras(extras)]
    if profile:
        parts.append(png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile)))
    if len(exif):
        parts.append(png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    parts.append(png_chunk(b"IDAT", zlib.compress(filtered.tobytes(), _ZLIB_LEVEL)))
    return b"".join([*parts, png_chunk(b"IEND", b"")])


def sixteen_bit_tiff(
    layers: np.ndarray, *, exif: Image.Exif, profile: bytes, extras: Extras
) -> bytes:
    """uint16 (H, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA); the texts of ``exif`` alone."""
    channels = layers.shape[2]
    texts = {tag: exif.get(tag) for tag in _TEXT_TAGS}
    tags: list[tuple[Any, ...]] = [
        (tag, _ASCII, 0, text, True) for tag, text in texts.items() if isinstance(text, str)
    ]
    if extras.xmp:
        tags.append((XMP_TAG, _BYTE, len(extras.xmp), extras.xmp, True))
    resolution, unit = _resolution(exif, extras)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        layers[..., 0] if channels == 1 else layers,
        photometric="minisblack" if channels < 3 else "rgb",
        planarconfig=None if channels == 1 else "contig",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        iccprofile=profile or None,
        resolution=resolution,
        resolutionunit=unit,
        extratags=tags,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()


def _resolution(exif: Image.Exif, extras: Extras) -> tuple[tuple[float, float] | None, int | None]:
    across, down = exif.get(ExifTags.Base.XResolution), exif.get(ExifTags.Base.YResolution)
    if across and down:
        return (float(across), float(down)), int(exif.get(ExifTags.Base.ResolutionUnit, _INCH))
    return (extras.density, _INCH) if extras.density else (None, None)
