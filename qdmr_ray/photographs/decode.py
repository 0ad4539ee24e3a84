"""Reads and writes single photographs: any usual file becomes uint8 (H, W, 3) RGB.

The reader treats a file as follows:

- It applies the EXIF orientation, so that a photograph is the way up that its viewer shows it.
- It makes grey and palette images RGB; a 16-bit value becomes ``round(v / 257)``, which maps
  0..65535 evenly onto 0..255 (cutting off the low byte would darken by half a level).
- It composites transparency on **white**, on the stored (gamma-encoded) values: that is what
  "flatten image" and saving as JPEG do in photo editors, so a photographer sees nothing change.
- It reads the first of several frames. It applies no colour profile: the networks see the numbers
  that the file holds.
- It refuses CMYK, Lab, HSV, 32-bit and floating-point images: without a profile or a known range
  there is no right way to turn them into RGB.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from qdmr_ray.errors import QdmrError, one_line, printable
from qdmr_ray.storage import AnyPath, StorePath, write_file_atomic
from qdmr_ray.untrusted import check_memory, open_regular, read_regular

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# What Pillow may open, by content: it knows 30 more kinds, among them programs (EPS), for which it
# starts an interpreter.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# Up to the first number of pixels, which Pillow alone would take for a bomb, a file may be of any
# size. Beyond, it needs a byte for each so many of them: the most have PNG files of 1 bit and one
# colour, 8256, as deflate shrinks to a 1032nd at best.
_MANY_PIXELS, _PIXELS_PER_BYTE = 180_000_000, 10_000
# Bytes for each value of a pixel while Pillow's picture, its copy and an array exist: 4 to 5 were
# measured.
_BYTES_PER_VALUE = 4
# Pixels that are composited at once, in 100 bytes each.
_COMPOSITED = 1 << 20
# 65535 / 255: the factor between full scale at 16 and at 8 bits.
_SIXTEEN_TO_EIGHT = 257
_SIXTEEN_BIT_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
_CONVERTIBLE = ("1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")
# The tags of a TIFF that are read here, and two values of the third.
_TIFF_BITS_PER_SAMPLE, _TIFF_ORIENTATION, _TIFF_EXTRA_SAMPLES = 258, 274, 338
_NO_ALPHA, _PREMULTIPLIED = 0, 1
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
# 12-bit values are spread over the 16-bit range.
_TWELVE_BITS, _FULL_TWELVE, _FULL_SIXTEEN = 12, 4095, 65535
# Offset of a PNG's bit depth: 8 bytes of signature, then the IHDR chunk's length, name, width and
# height of 4 bytes each.
_PNG_BIT_DEPTH_AT = 24
# The last chunk of every PNG: its length, its name, no content, its checksum.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# EXIF orientations whose pixels are transposed, then flipped vertically, then horizontally.
_TRANSPOSED, _FLIPPED, _MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)
# zlib's fastest level: level 6 takes three times as long (0.7 s at 1920 x 1280) for files that are
# 6 to 14 % smaller, and pictures here are written more often than they are sent.
_PNG_LEVEL = 1


def read_image(path: AnyPath) -> np.ndarray:
    """Returns the photograph in ``path`` as C-contiguous uint8 (H, W, 3), RGB; raises QdmrError
    where it is missing, unreadable, truncated or of a kind that is refused."""
    return decode_image(read_file(path), str(path))


def read_checked(path: AnyPath, name: str) -> np.ndarray:
    """Reads as ``read_image`` does; errors call the image ``name``. Also raises QdmrError for a PNG
    with a wrong checksum, which Pillow doesn't look at while it decodes."""
    data = read_file(path, name)
    try:
        with _large_ones_too(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.format == "PNG":
                image.verify()
    except Exception as error:  # Decoders raise many types for a broken file.
        raise unreadable(name, error) from error
    return decode_image(data, name)


def read_file(path: AnyPath, name: str | None = None) -> bytes:
    """Returns the file's content; raises QdmrError where it is missing, unreadable or a folder.
    Errors call the file ``name`` if that isn't how ``path`` is written."""
    name = name or str(path)
    try:
        return path.read_bytes() if isinstance(path, StorePath) else read_regular(path)[0]
    except IsADirectoryError as error:
        raise QdmrError(f"{name}: is a folder; name the photographs in it") from error
    except OSError as error:
        raise QdmrError(f"{name}: cannot be read ({error.strerror}); check the path") from error


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes ``data`` as ``read_image`` does, errors included; these call the image ``name``."""
    try:
        with _large_ones_too(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image, len(data), name)
            image.load()
            pixels = _on_white(stored_pixels(image, data, name))
            # Read after the pixels, behind which a PNG may carry its EXIF block.
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except QdmrError:
        raise
    except Exception as error:  # Decoders raise whatever a broken file makes them stumble over.
        raise unreadable(name, error) from error
    return np.ascontiguousarray(oriented(pixels, orientation))


def check_size(image: Image.Image, size: int, name: str) -> None:
    """Raises QdmrError, before pixels are decoded, where a file of ``size`` bytes claims more of
    them than it can hold, or than fit into the free memory."""
    tags = getattr(image, "tag_v2", {})
    # A TIFF's tile is decoded as a whole, even where it is larger than the picture.
    tile = tags.get(_TIFF_TILE_WIDTH, 0) * tags.get(_TIFF_TILE_HEIGHT, 0)
    pixels = max(image.width * image.height, tile)
    if pixels > _MANY_PIXELS and pixels > size * _PIXELS_PER_BYTE:
        raise QdmrError(
            f"{name}: claims {pixels:,} pixels and has {size:,} bytes, too few for any picture of "
            "them; replace or remove the file"
        )
    try:
        needed = _BYTES_PER_VALUE * len(image.getbands()) * pixels
        check_memory(needed, f"decoding {pixels:,} pixels")
    except OSError as error:
        raise QdmrError(f"{name}: {error.strerror}; take a machine with more") from error


def probe_image(path: AnyPath, name: str | None = None) -> tuple[int, int]:
    """Returns the (height, width) of ``read_image``'s result from the header, without decoding.

    It reads some kilobytes, whatever the file's size; of a PNG also the end, so that one that was
    cut is found. ``read_checked`` finds the other kinds of damage. Raises QdmrError where the file
    is missing, no image, or a PNG that lacks its end; it calls the file as ``read_file`` does.
    """
    try:
        with _large_ones_too(), _opened(path) as file, Image.open(file, formats=FORMATS) as image:
            # For a PNG without an EXIF block at its start, getexif() would decode everything.
            known = image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if known else 1
            width, height = image.size
            if image.format == "PNG" and not _ends_as_png(file):
                # Something may stand behind a whole PNG, too.
                image.verify()
    except QdmrError:
        raise
    except Exception as error:  # Decoders raise many types for a broken file.
        raise unreadable(name or str(path), error) from error
    # Pillow reports a TIFF's size after its orientation is applied, that of other files as stored.
    turned = image.format != "TIFF" and orientation in _TRANSPOSED
    return (width, height) if turned else (height, width)


def _opened(path: AnyPath) -> IO[bytes]:
    return path.open("rb") if isinstance(path, StorePath) else open_regular(path)


def _ends_as_png(file: IO[bytes]) -> bool:
    """Whether a file's last bytes are a PNG's; its position stays."""
    position = file.tell()
    file.seek(-len(_PNG_END), os.SEEK_END)
    end = file.read()
    file.seek(position)
    return end == _PNG_END


@contextmanager
def _large_ones_too() -> Iterator[None]:
    """Photographs do have 100 megapixels; Pillow's hard limit stays in force."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8 (H, W, 3) or (H, W) as the bytes of a PNG file."""
    if image.dtype != np.uint8:
        raise ValueError(f"encode_png takes uint8, not {image.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def to_photograph(image: Tensor) -> np.ndarray:
    """Converts one image (3, H, W) to uint8 (H, W, 3): clamped to [0, 1], times 255, rounded."""
    pixels = image.detach().float().clamp(0, 1).mul(255).round()
    return pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8)


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) or (H, W) as a PNG file, completely or not at all; raises QdmrError
    where the folder is missing or not writable, or the disk is full."""
    write_file_atomic(path, encode_png(image))


def unreadable(name: str, error: Exception) -> QdmrError:
    """Returns the user's error for a decoder's exception."""
    unknown = isinstance(error, Image.UnidentifiedImageError)
    reason = "no image of a known kind" if unknown else printable(one_line(error))
    return QdmrError(f"{name}: unreadable image ({reason}); replace or remove the file")


def stored_pixels(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    """Returns a loaded image's pixels in the file's own orientation, as uint8 or uint16 (H, W, 1
    grey | 2 grey, alpha | 3 RGB | 4 RGBA); raises QdmrError for a colour mode that has no way to
    RGB and for values that can't be read exactly."""
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
    """Whether the values have 16 bits; Pillow, which has no such colour mode, may reduce them."""
    if image.mode in _SIXTEEN_BIT_GREY:
        return True
    if image.format == "PNG":
        return data[_PNG_BIT_DEPTH_AT] == 16
    tags = getattr(image, "tag_v2", {})
    return 16 in tuple(tags.get(_TIFF_BITS_PER_SAMPLE, ()))


def _read_sixteen_bit(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    """Returns the pixels of a PNG or of a TIFF's page as ``stored_pixels`` does, but uint16 with
    65535 white and in the orientation of ``image``; raises QdmrError for a layout of the values
    that can't be read exactly."""
    # Imported here, since few photographs need them.
    import imagecodecs
    import tifffile

    if image.format == "PNG":
        return np.atleast_3d(imagecodecs.png_decode(data))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[image.tell()].aspage()
        if page.size != page.samplesperpixel * image.width * image.height:
            raise QdmrError(
                f"{name}: claims 16-bit pixels of shape {page.shape}, which is no photograph's; "
                "save the picture as plain 16-bit RGB or grey"
            )
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
    # Pillow also turns the TIFF files that it reads itself.
    return oriented(pixels[..., : colours + alpha], orientation)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Composites stored pixels on white, as uint8 (H, W, 3)."""
    height, width, channels = pixels.shape
    if channels not in (2, 4) and pixels.dtype == np.uint8:
        return np.broadcast_to(pixels, (height, width, 3))
    composited = np.empty((height, width, 3), np.uint8)
    rows = max(1, _COMPOSITED // width)
    for first in range(0, height, rows):
        strip = pixels[first : first + rows]
        if channels in (2, 4):
            full_scale = float(np.iinfo(pixels.dtype).max)
            colour, alpha = strip[..., :-1] / full_scale, strip[..., -1:] / full_scale
            strip = np.rint((colour * alpha + (1.0 - alpha)) * 255.0)
        else:
            strip = (strip.astype(np.uint32) + _SIXTEEN_TO_EIGHT // 2) // _SIXTEEN_TO_EIGHT
        composited[first : first + rows] = strip
    return composited


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns ``pixels`` (H, W, C) upright; an orientation that EXIF does not define is ignored."""
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if orientation in _FLIPPED else 1, :: -1 if orientation in _MIRRORED else 1]
