"""Photographs that go out as they came in: 8 or 16 bits, with transparency, EXIF data and colour
profile.

    photograph = read_photograph(path)
    write_photograph(out, photograph, corrected)      # of the type and shape of photograph.pixels

For training and measuring, ``images.read_image`` gives 8 bits without any of these.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import ExifTags, Image

from qdmr_ray.data.images import (
    CONVERTIBLE,
    SIXTEEN_BIT_GREY,
    is_sixteen_bit,
    oriented,
    read_sixteen_bit,
)
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import write_file_atomic

# How files of 8 bits other than PNG are written, by ending.
_JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
_TIFF = {"format": "TIFF", "compression": "tiff_lzw"}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".bmp": {"format": "BMP"},
    ".jpeg": _JPEG,
    ".jpg": _JPEG,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".webp": {"format": "WEBP", "lossless": True},
}
_ORIENTATION = ExifTags.Base.Orientation
_UPRIGHT = 1
_TABLES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# Tags that say how a TIFF file's own pixels lie; another file has its own.
_STRUCTURAL = frozenset(
    tag
    for first, last in (
        *((254, 259), (262, 266), (273, 273), (277, 281), (284, 285), (288, 293), (297, 297)),
        *((301, 301), (317, 325), (330, 330), (338, 341), (347, 347), (512, 532), (34675, 34675)),
    )
    for tag in range(first, last + 1)
)
# Text that a 16-bit TIFF keeps: description, maker, model, software, date, artist, copyright.
_TEXT_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_ASCII = 2
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour types of a PNG by number of channels.
_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}
# Each row as its difference from the one above.
_PNG_FILTER_UP = 2
_ZLIB_LEVEL = 3
_limit_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """``pixels``, uint8 or uint16 (H, W, 3) RGB, upright; ``alpha``, of that type, (H, W) or None;
    ``grey``: the file has one colour channel; ``exif`` (as it is to be written) and ``profile``
    (ICC), empty where there is none."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    exif: Image.Exif
    profile: bytes


def read_photograph(path: Path) -> Photograph:
    """The photograph in ``path``, of any size.

    Raises:
        QdmrError: missing, unreadable, animated, or of a colour mode that has no way to RGB.
    """
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise QdmrError(f"{path}: is a folder; name the photographs in it") from error
    except OSError as error:
        raise QdmrError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        with _any_size(), Image.open(io.BytesIO(data)) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise QdmrError(
                    f"{path}: holds {frames} frames; save the one to correct as a picture of its "
                    "own"
                )
            image.load()
            pixels = _stored_pixels(image, data, str(path))
            # Only now: a PNG may carry its EXIF block after the pixels.
            exif = image.getexif()
            for table in _TABLES:
                # Of a TIFF it is read from the open file, when asked for.
                exif.get_ifd(table)
            profile = image.info.get("icc_profile") or b""
    except QdmrError:
        raise
    except Exception as error:  # Decoders raise whatever a broken file makes them stumble over.
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "no image of a known kind" if unknown else " ".join(str(error).split())
        raise QdmrError(
            f"{path}: unreadable image ({reason}); replace or remove the file"
        ) from error
    pixels = np.ascontiguousarray(oriented(pixels, exif.get(_ORIENTATION, _UPRIGHT)))
    channels = pixels.shape[2]
    colours = channels - 1 if channels in (2, 4) else channels
    return Photograph(
        pixels=np.ascontiguousarray(np.broadcast_to(pixels[..., :colours], (*pixels.shape[:2], 3))),
        alpha=pixels[..., -1] if colours < channels else None,
        grey=colours == 1,
        exif=_portable(exif),
        profile=profile,
    )


def write_photograph(path: Path, photograph: Photograph, pixels: np.ndarray) -> None:
    """Writes ``pixels`` in the format of the file's ending with all else that ``photograph`` has;
    completely or not at all.

    PNG, TIFF, BMP and WebP lose nothing; JPEG is written at quality 95 without subsampled colour.
    A TIFF of 16 bits keeps the texts of the EXIF data, not its tables.

    Raises:
        QdmrError: the folder is missing or not writable, or the disk is full.
        ValueError: 16 bits in a format that has only 8.
    """
    layers = _layers(photograph, pixels)
    suffix = path.suffix.lower()
    if layers.dtype == np.uint8:
        data = _eight_bit_file(suffix, photograph, layers)
    elif suffix == ".png":
        data = _sixteen_bit_png(photograph, layers)
    elif suffix in (".tif", ".tiff"):
        data = _sixteen_bit_tiff(photograph, layers)
    else:
        raise ValueError(f"{path}: only PNG and TIFF files have 16 bits")
    write_file_atomic(path, data)


@contextmanager
def _any_size() -> Iterator[None]:
    """Pillow's limit of 179 megapixels is against pictures from strangers; these were named."""
    with _limit_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _stored_pixels(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    """uint8 or uint16 (H, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA), as the file has them."""
    if image.mode in SIXTEEN_BIT_GREY:
        return np.asarray(image)[..., None].astype(np.uint16)
    if image.mode not in CONVERTIBLE:
        raise QdmrError(
            f"{name}: colour mode {image.mode} is not supported; "
            "save the picture as 8- or 16-bit RGB or grey"
        )
    if is_sixteen_bit(image, data):
        return read_sixteen_bit(image, data, name)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return np.asarray(image.convert("LA" if grey else "RGBA"))
    return np.atleast_3d(np.asarray(image.convert("L" if grey else "RGB")))


def _portable(exif: Image.Exif) -> Image.Exif:
    """The EXIF data without what belongs to the old file's pixels: they are upright now."""
    for tag in [tag for tag in exif if tag in _STRUCTURAL]:
        del exif[tag]
    if _ORIENTATION in exif:
        exif[_ORIENTATION] = _UPRIGHT
    return exif


def _layers(photograph: Photograph, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 1 .. 4): a grey photograph stays grey, and so fits its colour profile."""
    if photograph.grey:
        mean = np.rint(pixels.mean(axis=2, keepdims=True)).astype(pixels.dtype)
        pixels = mean
    if photograph.alpha is None:
        return pixels
    return np.concatenate([pixels, photograph.alpha[..., None]], axis=2)


def _eight_bit_file(suffix: str, photograph: Photograph, layers: np.ndarray) -> bytes:
    options: dict[str, Any] = {"format": "PNG", **_SAVE_OPTIONS.get(suffix, {})}
    if options["format"] != "BMP":
        options["exif"] = photograph.exif
        if photograph.profile:
            options["icc_profile"] = photograph.profile
    tables = {table: dict(photograph.exif.get_ifd(table)) for table in _TABLES}
    if options["format"] == "TIFF" and any(tables.values()):
        # Pillow writes EXIF tables into uncompressed TIFF files only, and only when set like this.
        del options["compression"]
        options["exif"] = _with_tables(photograph.exif, tables)
    image = Image.fromarray(layers[..., 0] if layers.shape[2] == 1 else layers)
    if image.mode == "LA" and options["format"] in ("WEBP", "BMP"):
        image = image.convert("RGBA")
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _with_tables(exif: Image.Exif, tables: Mapping[ExifTags.IFD, dict[int, Any]]) -> Image.Exif:
    made = Image.Exif()
    for tag, value in exif.items():
        # Here stand where the tables lay in the old file.
        if tag not in tables:
            made[tag] = value
    for table, values in tables.items():
        if values:
            made.get_ifd(table).update(values)
            made[table] = values
    return made


def _sixteen_bit_png(photograph: Photograph, layers: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow can't write (W3C, PNG Specification)."""
    height, width, channels = layers.shape
    rows = np.ascontiguousarray(layers.astype(">u2")).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), dtype=np.uint8)
    filtered[:, 0] = _PNG_FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR[channels], 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if photograph.profile:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(photograph.profile)))
    if len(photograph.exif):
        chunks.append((b"eXIf", photograph.exif.tobytes().removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes(), _ZLIB_LEVEL)), (b"IEND", b"")]
    return _PNG_SIGNATURE + b"".join(_png_chunk(kind, body) for kind, body in chunks)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _sixteen_bit_tiff(photograph: Photograph, layers: np.ndarray) -> bytes:
    texts = {tag: photograph.exif.get(tag) for tag in _TEXT_TAGS}
    tags = [(tag, _ASCII, 0, text, True) for tag, text in texts.items() if isinstance(text, str)]
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        layers[..., 0] if layers.shape[2] == 1 else layers,
        photometric="minisblack" if photograph.grey else "rgb",
        planarconfig=None if layers.shape[2] == 1 else "contig",
        extrasamples=None if photograph.alpha is None else ["unassalpha"],
        compression="zlib",
        iccprofile=photograph.profile or None,
        extratags=tags,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()
