"""Reads the metadata of a photograph's file so that they can be written into another file."""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import ExifTags, Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Where a PNG's first chunk ends; all other chunks follow it.
PNG_START = 33
XMP_TAG = 700
_ORIENTATION = ExifTags.Base.Orientation
_UPRIGHT = 1
TABLES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# Tags that describe how pixels lie in one TIFF file and don't apply to another file.
_STRUCTURAL = frozenset(
    tag
    for first, last in (
        *((254, 259), (262, 266), (273, 273), (277, 281), (284, 285), (288, 293), (297, 297)),
        *((301, 301), (317, 325), (330, 330), (338, 341), (347, 347), (512, 532), (34675, 34675)),
    )
    for tag in range(first, last + 1)
)
# The chunks of a PNG that stay valid for other pixels: colours, density and texts.
_PNG_KEPT = (b"cHRM", b"cICP", b"gAMA", b"iTXt", b"pHYs", b"sRGB", b"tEXt", b"zTXt")
_PNG_TEXTS = (b"iTXt", b"tEXt", b"zTXt")
_PNG_XMP = b"XML:com.adobe.xmp"
# Texts that repeat EXIF data and XMP and would be outdated once those change.
_PNG_COPIES = (_PNG_XMP, *(b"Raw profile type " + kind for kind in (b"APP1", b"exif", b"xmp")))
# Photoshop's segment, in which JPEG files keep their IPTC captions: Pillow's name, and the marker.
_CAPTIONS, _CAPTIONS_MARKER = "APP13", b"\xff\xed"
_JPEG_DENSITIES = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Extras:
    """``comment`` and ``segments`` are a JPEG's, ``chunks`` a PNG's, both ready to be written;
    ``density`` is in dots per inch, across and down."""

    xmp: bytes = b""
    comment: bytes = b""
    segments: bytes = b""
    density: tuple[float, float] | None = None
    chunks: bytes = b""


def portable_exif(exif: Image.Exif, height: int, width: int) -> Image.Exif:
    """Returns a copy for upright pixels without the tags that belong to the old file's pixels; the
    file of a TIFF must still be open."""
    made = Image.Exif()
    # The maker's notes inside the data may depend on this byte order.
    made.endian = exif.endian
    dropped = {*_STRUCTURAL, *TABLES, XMP_TAG}
    made.update({tag: value for tag, value in exif.items() if tag not in dropped})
    if _ORIENTATION in exif:
        made[_ORIENTATION] = _UPRIGHT
    for table in TABLES:
        values = dict(exif.get_ifd(table))
        if table == ExifTags.IFD.Exif:
            # The interoperability table itself replaces its offset in the old file.
            if values.pop(ExifTags.IFD.Interop, None) is not None:
                inner = dict(exif.get_ifd(ExifTags.IFD.Interop))
                values |= {ExifTags.IFD.Interop: inner} if inner else {}
            sides = ((ExifTags.Base.ExifImageWidth, width), (ExifTags.Base.ExifImageHeight, height))
            values |= {tag: side for tag, side in sides if tag in values}
        if values:
            made.get_ifd(table).update(values)
            # Pillow writes a table into a TIFF only if it is also among the tags.
            made[table] = values
    return made


def read_extras(image: Image.Image, data: bytes, height: int, width: int) -> Extras:
    """Reads the extras of the loaded ``image`` in ``data``, for upright pixels of this size."""
    info = image.info
    xmp, comment, density = info.get("xmp"), info.get("comment"), info.get("dpi")
    jpeg = image.format in ("JPEG", "MPO")
    if jpeg and info.get("jfif_unit") not in _JPEG_DENSITIES:
        # The file has no density of its own: Pillow took it from the EXIF data, or assumed 72.
        density = None
    if image.format == "TIFF" and ExifTags.Base.XResolution not in image.tag_v2:  # type: ignore[attr-defined]
        density = None
    return Extras(
        xmp=_upright_xmp(xmp, height, width) if isinstance(xmp, bytes) else b"",
        comment=comment if jpeg and isinstance(comment, bytes) else b"",
        segments=_kept_segments(image) if jpeg else b"",
        density=None if density is None else (float(density[0]), float(density[1])),
        chunks=_kept_chunks(data) if image.format == "PNG" else b"",
    )


def _upright_xmp(xmp: bytes, height: int, width: int) -> bytes:
    """Corrects the XMP's copies of orientation and size, be they attributes or elements."""
    for name, value in (
        (b"tiff:Orientation", _UPRIGHT),
        (b"tiff:ImageWidth", width),
        (b"tiff:ImageLength", height),
        (b"exif:PixelXDimension", width),
        (b"exif:PixelYDimension", height),
    ):
        xmp = re.sub(rb"(" + name + rb"\s*(?:=\s*[\"']|>))\d+", rb"\g<1>%d" % value, xmp)
    return xmp


def _kept_segments(image: Image.Image) -> bytes:
    segments: list[tuple[str, bytes]] = getattr(image, "applist", [])
    kept = (body for name, body in segments if name == _CAPTIONS)
    return b"".join(_CAPTIONS_MARKER + struct.pack(">H", len(body) + 2) + body for body in kept)


def _kept_chunks(data: bytes) -> bytes:
    profile = any(kind == b"iCCP" for kind, _ in _png_chunks(data))
    return b"".join(
        png_chunk(kind, body)
        for kind, body in _png_chunks(data)
        if kind in _PNG_KEPT
        and not (kind in _PNG_TEXTS and body.split(b"\0", 1)[0] in _PNG_COPIES)
        # PNG forbids sRGB beside a profile, and the profile is the more exact one.
        and not (kind == b"sRGB" and profile)
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at + 8 : at + 8 + length]
        # Length, name and checksum take four bytes each.
        at += 12 + length


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Returns a chunk with its length and checksum (W3C, PNG Specification)."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_extras(extras: Extras) -> bytes:
    """Returns the chunks that a PNG carries before its pixels."""
    chunks = extras.chunks
    if extras.xmp:
        # The zero bytes mean: not compressed, no language.
        chunks += png_chunk(b"iTXt", _PNG_XMP + b"\0\0\0\0\0" + extras.xmp)
    if extras.density and not extras.chunks:
        per_metre = [round(dots / 0.0254) for dots in extras.density]
        chunks += png_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1))
    return chunks
