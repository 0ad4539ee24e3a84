"""Photographs that keep all that their files hold: bit depth, transparency, EXIF, colour profile.

    photograph = read_photograph(path)
    write_photograph(out, photograph, corrected)      # of the type and shape of photograph.pixels

Training and measuring use ``decode.read_image`` instead, which returns 8 bits and none of these.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.photographs.decode import (
    FORMATS,
    check_size,
    oriented,
    read_file,
    stored_pixels,
    unreadable,
)
from qdmr_ray.photographs.metadata import (
    PNG_START,
    TABLES,
    XMP_TAG,
    Extras,
    png_extras,
    portable_exif,
    read_extras,
)
from qdmr_ray.photographs.sixteen_bit import sixteen_bit_png, sixteen_bit_tiff
from qdmr_ray.storage import write_file_atomic

# Pillow's save options for 8-bit files other than PNG, by ending.
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
_SIXTEEN_BIT = {".png": sixteen_bit_png, ".tif": sixteen_bit_tiff, ".tiff": sixteen_bit_tiff}
_JPEG_ENDINGS = (".jpeg", ".jpg")
# Longest side in pixels: WebP stores it in 14 bits, libjpeg has a limit of its own.
_LONGEST = {".webp": 16383, ".jpeg": 65500, ".jpg": 65500}
# Room for XMP: a segment's 65533 bytes less the name that an XMP segment begins with.
_JPEG_XMP = 65504
_ORIENTATION = ExifTags.Base.Orientation
_UPRIGHT = 1
# A TIFF page's kind: the flags say that it is a smaller copy of another page, or a mask of it.
_SUBFILE_TYPE, _REDUCED, _MASK = 254, 1, 4
# A photograph with previews of all sizes has about ten.
_MOST_PAGES = 100
_limit_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """``pixels`` are uint8 or uint16 (H, W, 3) RGB, upright; ``alpha`` is of that type, (H, W) or
    None; ``grey``: the file has one colour channel; ``exif`` (as it is to be written) and
    ``profile`` (ICC) are empty where there is none; ``extras`` is what else the file holds."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    exif: Image.Exif
    profile: bytes
    extras: Extras = Extras()


def read_photograph(path: Path) -> Photograph:
    """Reads the photograph in ``path``, of any size; of a camera's file with previews (MPO, or a
    TIFF whose pages say so) it reads the main picture. Raises QdmrError where it is missing,
    unreadable, animated, or of a colour mode that has no way to RGB."""
    data = read_file(path)
    try:
        with _any_size(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _choose_frame(image, str(path))
            check_size(image, len(data), str(path))
            image.load()
            pixels = stored_pixels(image, data, str(path))
            # Read after the pixels, behind which a PNG may carry its EXIF block.
            exif = image.getexif()
            pixels = np.ascontiguousarray(oriented(pixels, exif.get(_ORIENTATION, _UPRIGHT)))
            height, width = pixels.shape[:2]
            exif = portable_exif(exif, height, width)
            extras = read_extras(image, data, height, width)
            profile = image.info.get("icc_profile") or b""
    except (QdmrError, MemoryError):
        raise
    except Exception as error:  # Decoders raise whatever a broken file makes them stumble over.
        raise unreadable(str(path), error) from error
    channels = pixels.shape[2]
    colours = channels - 1 if channels in (2, 4) else channels
    return Photograph(
        pixels=np.ascontiguousarray(np.broadcast_to(pixels[..., :colours], (*pixels.shape[:2], 3))),
        alpha=pixels[..., -1] if colours < channels else None,
        grey=colours == 1,
        exif=exif,
        profile=profile,
        extras=extras,
    )


def check_fits(photograph: Photograph, suffix: str, name: str) -> None:
    """Checks, before ``photograph`` is corrected, that a file with this ending can hold it; raises
    QdmrError for 16 bits, transparency or a side that the format has no room for."""
    height, width = photograph.pixels.shape[:2]
    longest = _LONGEST.get(suffix)
    if photograph.pixels.dtype == np.uint16 and suffix not in _SIXTEEN_BIT:
        what = "16 bits a channel"
    elif photograph.alpha is not None and suffix in _JPEG_ENDINGS:
        what = "transparency"
    elif longest is not None and max(height, width) > longest:
        what = f"{width}x{height} pixels, a side longer than {longest}"
    else:
        return
    raise QdmrError(
        f"{name}: has {what}, for which {suffix} files have no room; rename it to .png or .tif"
    )


def write_photograph(path: Path, photograph: Photograph, pixels: np.ndarray) -> list[str]:
    """Writes ``pixels`` with all else that ``photograph`` holds, completely or not at all.

    The file's ending sets the format. PNG, TIFF, BMP and WebP lose nothing; JPEG is written at
    quality 95 without subsampled colour. A 16-bit TIFF keeps the texts of the EXIF data, not its
    tables. Returns what had to be left out, a line each. Raises QdmrError where the format has no
    room for the pixels, the folder is missing or not writable, or the disk is full.
    """
    suffix, lost = path.suffix.lower(), []
    check_fits(photograph, suffix, str(path))
    layers = _layers(photograph, pixels)
    if suffix in _JPEG_ENDINGS and len(photograph.extras.xmp) > _JPEG_XMP:
        photograph = replace(photograph, extras=replace(photograph.extras, xmp=b""))
        lost.append("its XMP data are too long for a JPEG file and were left out")
    try:
        data = _encoded(suffix, photograph, layers)
    except Exception as error:  # Pillow raises whatever odd EXIF data make it stumble over.
        if not len(photograph.exif):
            raise
        data = _encoded(suffix, replace(photograph, exif=Image.Exif()), layers)
        lost.append(f"its EXIF data cannot be written ({one_line(error)}) and were left out")
    write_file_atomic(path, data)
    return lost


def _encoded(suffix: str, photograph: Photograph, layers: np.ndarray) -> bytes:
    if layers.dtype == np.uint8:
        return _eight_bit_file(suffix, photograph, layers)
    return _SIXTEEN_BIT[suffix](
        layers, exif=photograph.exif, profile=photograph.profile, extras=photograph.extras
    )


def _choose_frame(image: Image.Image, name: str) -> None:
    """Seeks the photograph among its previews; refuses several photographs in one file."""
    # The first frame of a camera's MPO file is the photograph, which JPEG viewers show.
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return
    if image.format == "TIFF":
        main, page = [], 0
        with suppress(EOFError):
            # Finding the pages takes Pillow a time that grows with the square of their number.
            while page <= _MOST_PAGES:
                main += [] if _kind(image, page) & (_REDUCED | _MASK) else [page]
                page += 1
        if len(main) == 1 and page <= _MOST_PAGES:
            image.seek(main[0])
            return
    raise QdmrError(
        f"{name}: holds several frames; save the one to correct as a picture of its own"
    )


def _kind(image: Image.Image, page: int) -> int:
    image.seek(page)
    return int(image.tag_v2.get(_SUBFILE_TYPE, 0))  # type: ignore[attr-defined]


@contextmanager
def _any_size() -> Iterator[None]:
    """Lifts Pillow's limit of 179 megapixels, a guard against strangers' files, for files that the
    user named."""
    with _limit_lock, warnings.catch_warnings():
        # Pillow also warns of odd EXIF data, which is no use to a user.
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _layers(photograph: Photograph, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 1 .. 4); a grey photograph stays grey, since its colour profile is for grey."""
    if photograph.grey:
        pixels = np.rint(pixels.mean(axis=2, keepdims=True)).astype(pixels.dtype)
    if photograph.alpha is None:
        return pixels
    return np.concatenate([pixels, photograph.alpha[..., None]], axis=2)


def _eight_bit_file(suffix: str, photograph: Photograph, layers: np.ndarray) -> bytes:
    options: dict[str, Any] = {"format": "PNG", **_SAVE_OPTIONS.get(suffix, {})}
    form, exif, extras = options["format"], photograph.exif, photograph.extras
    if form == "TIFF" and extras.xmp:
        exif = _with_xmp(exif, extras.xmp)
    if form == "TIFF" and any(table in exif for table in TABLES):
        # Pillow writes EXIF tables into uncompressed TIFF files only.
        del options["compression"]
    if form != "BMP":
        # Pillow would write an empty block for empty EXIF data.
        options |= {"exif": exif} if len(exif) else {}
        options |= {"icc_profile": photograph.profile} if photograph.profile else {}
    if form in ("JPEG", "WEBP") and extras.xmp:
        options["xmp"] = extras.xmp
    if form == "JPEG":
        options |= {"comment": extras.comment, "extra": extras.segments}
    # A TIFF keeps its own density among its tags.
    own = form == "TIFF" and ExifTags.Base.XResolution in exif
    if form in ("BMP", "JPEG", "TIFF") and extras.density and not own:
        options["dpi"] = extras.density
    image = Image.fromarray(layers[..., 0] if layers.shape[2] == 1 else layers)
    if image.mode == "LA" and form in ("WEBP", "BMP"):
        image = image.convert("RGBA")
    buffer = io.BytesIO()
    image.save(buffer, **options)
    data = buffer.getvalue()
    return data[:PNG_START] + png_extras(extras) + data[PNG_START:] if form == "PNG" else data


def _with_xmp(exif: Image.Exif, xmp: bytes) -> Image.Exif:
    """Returns a copy with the XMP among the tags, which is its place in a TIFF."""
    made = Image.Exif()
    made.endian = exif.endian
    for table in TABLES:
        # The tables come before the tags: once tags are set, Pillow looks for the tables in a file.
        made.get_ifd(table).update(exif.get_ifd(table))
    made.update({**exif, XMP_TAG: xmp})
    return made
