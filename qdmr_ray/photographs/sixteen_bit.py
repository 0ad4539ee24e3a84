"""Writes 16-bit files, which Pillow can't, by imagecodecs (PNG) and tifffile."""

import io
import zlib
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import ExifTags, Image

from qdmr_ray.photographs.metadata import PNG_START, XMP_TAG, Extras, png_chunk, png_extras

# Level 3 took 40 % longer on a fundus photograph for files that are 0.2 % smaller.
_PNG_LEVEL = 1
# Texts that a 16-bit TIFF keeps: description, maker, model, software, date, artist, copyright.
_TEXT_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_BYTE, _ASCII = 1, 2
_INCH = 2


def sixteen_bit_png(
    layers: np.ndarray, *, exif: Image.Exif, profile: bytes, extras: Extras
) -> bytes:
    """Encodes uint16 (H, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA) as a PNG's bytes."""
    pixels = layers[..., 0] if layers.shape[2] == 1 else layers
    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=_PNG_LEVEL))
    chunks = png_extras(extras)
    if profile:
        chunks += png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    if len(exif):
        chunks += png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    return data[:PNG_START] + chunks + data[PNG_START:]


def sixteen_bit_tiff(
    layers: np.ndarray, *, exif: Image.Exif, profile: bytes, extras: Extras
) -> bytes:
    """Encodes such ``layers`` as a TIFF's bytes; of ``exif`` it keeps the texts alone."""
    channels = layers.shape[2]
    texts = ((tag, exif.get(tag)) for tag in _TEXT_TAGS)
    tags: list[Any] = [(tag, _ASCII, 0, text, True) for tag, text in texts if isinstance(text, str)]
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
