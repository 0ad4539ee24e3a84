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
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.storage import write_file_atomic

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# 65535 / 255: the factor between full scale at 16 and at 8 bits.
_SIXTEEN_TO_EIGHT = 257
_SIXTEEN_BIT_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
_CONVERTIBLE = ("1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")
# A TIFF's tags, and values of the third.
_TIFF_BITS_PER_SAMPLE, _TIFF_ORIENTATION, _TIFF_EXTRA_SAMPLES = 258, 274, 338
_NO_ALPHA, _PREMULTIPLIED = 0, 1
# Values of 12 bits are spread over 16.
_TWELVE_BITS, _FULL_TWELVE, _FULL_SIXTEEN = 12, 4095, 65535
# A PNG's bit depth lies at a fixed place: 8 bytes of signature, then the IHDR chunk's length,
# name, width and height of 4 bytes each.
_PNG_BIT_DEPTH_AT = 24
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
                pixels = _on_white(stored_pixels(image, data, name))
                # Only now: a PNG may carry its EXIF block after the pixels.
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except QdmrError:
        raise
    except Exception as error:  # Decoders raise whatever a broken file makes them stumble over.
        raise unreadable(name, error) from error
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
        raise unreadable(str(path), error) from error
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


def to_photograph(image: Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of one image (3, H, W): clamped to [0, 1], times 255, rounded."""
    pixels = image.detach().float().clamp(0, 1).mul(255).round()
    return pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8)


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) or (H, W) as a PNG; the file is there completely or not at all.

    Raises:
        QdmrError: the folder is missing or not writable, or the disk is full.
    """
    write_file_atomic(path, encode_png(image))


def unreadable(name: str, error: Exception) -> QdmrError:
    """What a user is told when a decoder raises ``error``."""
    unknown = isinstance(error, Image.UnidentifiedImageError)
    reason = "no image of a known kind" if unknown else one_line(error)
    return QdmrError(f"{name}: unreadable image ({reason}); replace or remove the file")


def stored_pixels(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    """uint8 or uint16 (H, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA) of a loaded image, in the
    file's own orientation.

    Raises:
        QdmrError: a colour mode that has no way to RGB, or values that can't be read exactly.
    """
    if image.mode not in _CONVERTIBLE + _SIXTEEN_BIT_GREY:
        raise QdmrError(
            f"{name}: colour mode {image.mode} is not supported; "
            "save the picture as 8- or 16-bit RGB or grey"
        )
    if _is_sixteen_bit(image, data):
        return _read_sixteen_bit(image, data, name)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return np.asarray(image.convert("LA" if grey else "RGBA"))
    return np.atleast_3d(np.asarray(image.convert("L" if grey else "RGB")))


def _is_sixteen_bit(image: Image.Image, data: bytes) -> bool:
    """Whether the file has more bits than Pillow, which has no 16-bit colour mode, may give."""
    if image.mode in _SIXTEEN_BIT_GREY:
        return True
    if image.format == "PNG":
        return data[_PNG_BIT_DEPTH_AT] == 16
    tags = getattr(image, "tag_v2", {})
    return 16 in tuple(tags.get(_TIFF_BITS_PER_SAMPLE, ()))


def _read_sixteen_bit(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    """uint16 (H, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA) of a PNG or a TIFF's page, turned as
    ``image``, 65535 white.

    Raises:
        QdmrError: the values lie in a way that can't be read exactly.
    """
    # Only here, since few photographs need them.
    import imagecodecs
    import tifffile

    if image.format == "PNG":
        return np.atleast_3d(imagecodecs.png_decode(data))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[image.tell()].aspage()
        extra = tuple(page.tags.valueof(_TIFF_EXTRA_SAMPLES) or ())
        orientation = page.tags.valueof(_TIFF_ORIENTATION) or 1
        if _PREMULTIPLIED in extra:
            raise QdmrError(
                f"{name}: 16-bit pixels that are multiplied with their transparency are not "
                "supported; save the picture as plain 16-bit RGB or grey"
            )
        try:
            # (planes, depth, height, width, samples): colours lie in planes or in samples.
            planes = page.asarray(squeeze=False)
        except ValueError as error:
            raise QdmrError(
                f"{name}: this compression of 16-bit pixels is not supported ({one_line(error)}); "
                "save the picture uncompressed"
            ) from error
    pixels = planes[0, 0] if len(planes) == 1 else np.moveaxis(planes[:, 0, :, :, 0], 0, -1)
    if page.bitspersample == _TWELVE_BITS:
        pixels = np.rint(pixels * (_FULL_SIXTEEN / _FULL_TWELVE)).astype(np.uint16)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = _FULL_SIXTEEN - pixels
    colours = pixels.shape[2] - len(extra)
    alpha = bool(extra) and extra[0] != _NO_ALPHA
    # Pillow turns the TIFF files that it reads itself, too.
    return oriented(pixels[..., : colours + alpha], orientation)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Any stored pixels as uint8 (H, W, 3) over a white ground."""
    height, width, channels = pixels.shape
    if channels in (2, 4):
        full_scale = float(np.iinfo(pixels.dtype).max)
        colour, alpha = pixels[..., :-1] / full_scale, pixels[..., -1:] / full_scale
        pixels = np.rint((colour * alpha + (1.0 - alpha)) * 255.0).astype(np.uint8)
    elif pixels.dtype == np.uint16:
        rounded = (pixels.astype(np.uint32) + _SIXTEEN_TO_EIGHT // 2) // _SIXTEEN_TO_EIGHT
        pixels = rounded.astype(np.uint8)
    return np.broadcast_to(pixels, (height, width, 3))


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """``pixels`` (H, W, C) turned upright; an orientation that EXIF does not know is ignored."""
    transpose, vertical, horizontal = _ORIENTATIONS.get(orientation, _ORIENTATIONS[1])
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]
