"""Reading and writing single photographs: any usual file becomes uint8 (H, W, 3) RGB.

What is done to a file, and why:

- EXIF orientation is applied, so that a photograph is the way up that its viewer shows it.
- Grey and palette images become RGB; 16-bit values become ``round(v / 257)``, which maps 0..65535
  evenly onto 0..255 (cutting off the low byte would darken by half a level).
- Transparency is composited on **white**, on the stored (gamma-encoded) values: that is what
  "flatten image" and saving as JPEG do in photo editors, so a photographer sees nothing change.
- Of a file with several frames, the first is read. Colour profiles are not applied: the numbers
  in the file are the numbers that the networks see.
- CMYK, Lab, HSV, 32-bit and floating-point images are refused: without a profile or a known range
  there is no right way to turn them into RGB.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.storage import write_file_atomic

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# 65535 / 255: the factor between full scale at 16 and at 8 bits.
_SIXTEEN_TO_EIGHT = 257
SIXTEEN_BIT_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
CONVERTIBLE = ("1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")
# A TIFF's tags, and what they say: black is 65535; each colour lies in a plane of its own.
_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _TIFF_PLANAR, _TIFF_ORIENTATION = 258, 262, 284, 274
_TIFF_EXTRA_SAMPLES = 338
_MIN_IS_WHITE, _PLANES = 0, 2
_NO_ALPHA, _PREMULTIPLIED = 0, 1
# 12 bits, which Pillow gives as they are, spread over 16.
_TWELVE_BITS, _FULL_TWELVE, _FULL_SIXTEEN = (12,), 4095, 65535
# A PNG's bit depth lies at a fixed place: 8 bytes of signature, then the IHDR chunk's length,
# name, width and height of 4 bytes each.
_PNG_BIT_DEPTH_AT = 24
# Pillow's layouts of 16-bit colour, each with the one that finds the low byte where it looks for
# the high one. "N" is this machine's own order.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in _OTHER_ORDER.items()
}
_PNG_GREY_ALPHA = "LA;16B"
# EXIF orientation -> (transpose, then flip vertically, then flip horizontally).
_ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# zlib's fastest level: 6 takes three times as long (0.7 s at 1920 x 1280) for files that are 6 to
# 14 % smaller, and pictures here are written more often than they are sent.
_PNG_LEVEL = 1


def read_image(path: Path) -> np.ndarray:
    """The photograph in ``path`` as a C-contiguous uint8 array of shape (H, W, 3), RGB.

    Raises:
        QdmrError: the file is missing, unreadable, truncated or of a kind that is refused.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise QdmrError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """The encoded image ``data`` as ``read_image`` would give it; ``name`` is for error messages.

    Raises:
        QdmrError: the data are no image, truncated or of a kind that is refused.
    """
    try:
        with warnings.catch_warnings():
            # 100-megapixel photographs are photographs; the hard limit of Pillow stays in force.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                pixels = _pixels(image, data, name)
                # Only now: a PNG may carry its EXIF block after the pixels.
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except QdmrError:
        raise
    except Exception as error:  # Decoders raise whatever a broken file makes them stumble over.
        reason = "no image of a known kind" if _is_unknown(error) else str(error)
        raise QdmrError(
            f"{name}: unreadable image ({reason}); replace or remove the file"
        ) from error
    return np.ascontiguousarray(oriented(pixels, orientation))


def probe_image(path: Path) -> tuple[int, int]:
    """(height, width) that ``read_image`` will give, from the header alone, without decoding.

    A PNG's checksums are compared too, so that most broken files are found in milliseconds.

    Raises:
        QdmrError: the file is missing, no image, or a PNG with a broken or missing part.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                # For a PNG without an EXIF block at its start, getexif() would decode everything.
                known = image.format != "PNG" or "exif" in image.info
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if known else 1
                width, height = image.size
                if image.format == "PNG":
                    image.verify()
    except Exception as error:
        reason = "no image of a known kind" if _is_unknown(error) else str(error)
        raise QdmrError(
            f"{path}: unreadable image ({reason}); replace or remove the file"
        ) from error
    # Pillow gives a TIFF's size as it will be turned, that of the others as it is stored.
    turned = image.format != "TIFF" and _ORIENTATIONS.get(orientation, (False,))[0]
    return (width, height) if turned else (height, width)


def encode_png(image: np.ndarray) -> bytes:
    """``image``, uint8 (H, W, 3) or (H, W), as a PNG file's bytes."""
    if image.dtype != np.uint8:
        raise ValueError(f"encode_png takes uint8, not {image.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) or (H, W) as a PNG; the file is there completely or not at all.

    Raises:
        QdmrError: the folder is missing or not writable, or the disk is full.
    """
    write_file_atomic(path, encode_png(image))


def _is_unknown(error: Exception) -> bool:
    return isinstance(error, Image.UnidentifiedImageError)


def _pixels(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    """uint8 (H, W, 3) in the file's own orientation."""
    if image.mode not in CONVERTIBLE + SIXTEEN_BIT_GREY:
        raise QdmrError(
            f"{name}: colour mode {image.mode} is not supported; "
            "save the picture as 8- or 16-bit RGB or grey"
        )
    if is_sixteen_bit(image, data):
        return _eight_bits(read_sixteen_bit(image, data, name))
    if image.has_transparency_data:
        return _on_white(np.asarray(image.convert("RGBA")), full_scale=255)
    return np.asarray(image.convert("RGB"))


def is_sixteen_bit(image: Image.Image, data: bytes) -> bool:
    """Whether the file has more bits than Pillow, which has no 16-bit colour mode, may give."""
    if image.mode in SIXTEEN_BIT_GREY:
        return True
    if image.format == "PNG":
        return data[_PNG_BIT_DEPTH_AT] == 16
    return 16 in tuple(_tiff_tags(image).get(_TIFF_BITS_PER_SAMPLE, ()))


def read_sixteen_bit(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    """uint16 (H, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA) of a PNG or a TIFF's page, turned as
    ``image``, 65535 white.

    Raises:
        QdmrError: the values lie in a way that can't be read exactly.
    """
    tags = _tiff_tags(image)
    if image.mode in SIXTEEN_BIT_GREY:
        grey = np.asarray(image)[..., None].astype(np.uint16)
        if tuple(tags.get(_TIFF_BITS_PER_SAMPLE, ())) == _TWELVE_BITS:
            grey = np.rint(grey * (_FULL_SIXTEEN / _FULL_TWELVE)).astype(np.uint16)
        # Pillow turns 8 bits round, not 16.
        return _FULL_SIXTEEN - grey if tags.get(_TIFF_PHOTOMETRIC) == _MIN_IS_WHITE else grey
    if tags.get(_TIFF_PLANAR) == _PLANES:
        return _read_planes(data, image.tell(), name)
    return _read_both_bytes(image, data, name)


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})


def _read_planes(data: bytes, number: int, name: str) -> np.ndarray:
    """A TIFF page whose colours lie apart: Pillow loses low bytes of compressed ones, unnoticed."""
    # Only here, since few photographs need it.
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[number].aspage()
        try:
            # (planes, depth, height, width, 1)
            planes = page.asarray(squeeze=False)[:, 0, :, :, 0]
        except ValueError as error:  # A compression that takes another package.
            raise QdmrError(
                f"{name}: 16-bit colours in planes cannot be read exactly with this compression "
                f"({one_line(error)}); save the picture uncompressed, or with its colours together"
            ) from error
        tags = {code: page.tags.valueof(code) for code in (_TIFF_EXTRA_SAMPLES, _TIFF_ORIENTATION)}
    extra = tuple(tags[_TIFF_EXTRA_SAMPLES] or ())
    if _PREMULTIPLIED in extra:
        raise QdmrError(
            f"{name}: 16-bit pixels that are multiplied with their transparency are not supported; "
            "save the picture as plain 16-bit RGB or grey"
        )
    pixels = np.moveaxis(planes[:3] if extra[:1] == (_NO_ALPHA,) else planes[:4], 0, -1)
    # As Pillow does with what it reads itself.
    return oriented(pixels, tags[_TIFF_ORIENTATION] or 1)


def _read_both_bytes(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    """Pillow's unpackers take the high byte of each value; told that the bytes come in the other
    order, the same decoder takes the low one. So every compression that Pillow reads is exact."""
    with Image.open(io.BytesIO(data)) as again:
        again.seek(image.tell())
        raw_mode = _raw_mode(again.tile[0].args)
        if raw_mode == _PNG_GREY_ALPHA:
            # Four bytes a pixel: grey high, grey low, alpha high, alpha low.
            again.tile = [tile._replace(args="RGBA") for tile in again.tile]
            again.load()
            return np.ascontiguousarray(np.asarray(again)).view(">u2").astype(np.uint16)
        if raw_mode not in _LOW_BYTES:
            raise QdmrError(
                f"{name}: 16-bit pixels in the layout {raw_mode} are not supported; "
                "save the picture as plain 16-bit RGB or grey"
            )
        again.tile = [tile._replace(args=_with_low_bytes(tile.args)) for tile in again.tile]
        again.load()
        pixels = (np.asarray(image).astype(np.uint16) << 8) | np.asarray(again)
    return pixels[..., :3] if image.mode == "RGBX" else pixels


def _raw_mode(args: Any) -> str:
    """The layout in a Pillow tile's arguments: alone for PNG, the first of several for TIFF."""
    return args if isinstance(args, str) else args[0]


def _with_low_bytes(args: Any) -> Any:
    low = _LOW_BYTES[_raw_mode(args)]
    return low if isinstance(args, str) else (low, *args[1:])


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 (H, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA) -> uint8 (H, W, 3)."""
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:]
        colour = np.broadcast_to(pixels[..., :-1], (*pixels.shape[:2], 3))
        return _on_white(np.concatenate([colour, alpha], axis=2), full_scale=65535)
    rounded = (pixels.astype(np.uint32) + _SIXTEEN_TO_EIGHT // 2) // _SIXTEEN_TO_EIGHT
    return np.broadcast_to(rounded.astype(np.uint8), (*pixels.shape[:2], 3))


def _on_white(rgba: np.ndarray, *, full_scale: int) -> np.ndarray:
    """(H, W, 4) integers up to ``full_scale`` -> uint8 (H, W, 3) over a white ground."""
    colour = rgba[..., :3].astype(np.float64) / full_scale
    alpha = rgba[..., 3:].astype(np.float64) / full_scale
    return np.rint((colour * alpha + (1.0 - alpha)) * 255.0).astype(np.uint8)


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """``pixels`` (H, W, C) turned upright; an orientation that EXIF does not know is ignored."""
    transpose, vertical, horizontal = _ORIENTATIONS.get(orientation, _ORIENTATIONS[1])
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]
