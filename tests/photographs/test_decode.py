"""Any usual photograph becomes uint8 (H, W, 3); what cannot be read is named."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import (
    decode_image,
    encode_png,
    probe_image,
    read_checked,
    read_image,
    stored_pixels,
    write_png,
)

HEIGHT, WIDTH = 6, 10


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def deep() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)


def png_16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG of (H, W, 1 to 4): grey, grey + alpha, RGB or RGBA. Pillow writes none."""
    height, width, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels / 65535 * 255).astype(np.uint8)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Both in [0, 1]; alpha (H, W, 1)."""
    return np.rint((colour * alpha + 1 - alpha) * 255).astype(np.uint8)


def test_a_png_keeps_every_pixel(tmp_path: Path, picture: np.ndarray) -> None:
    file = tmp_path / "a.png"
    write_png(file, picture)
    image = read_image(file)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, picture)
    np.testing.assert_array_equal(decode_image(encode_png(picture), "a"), picture)
    assert probe_image(file) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "bmp"])
def test_lossless_kinds_keep_every_pixel(tmp_path: Path, picture: np.ndarray, kind: str) -> None:
    file = tmp_path / f"a.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(picture).save(file, **options)
    np.testing.assert_array_equal(read_image(file), picture)
    assert probe_image(file) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg"])
def test_exif_rotation_is_applied(
    tmp_path: Path, picture: np.ndarray, kind: str, orientation: int
) -> None:
    file = tmp_path / f"turned.{kind}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.kron(picture, np.ones((8, 8, 1), dtype=np.uint8)))
    image.save(file, exif=exif)
    with Image.open(file) as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved))
    found = read_image(file)
    np.testing.assert_array_equal(found, expected)
    assert found.shape[:2] == (
        (WIDTH * 8, HEIGHT * 8) if orientation > 4 else (HEIGHT * 8, WIDTH * 8)
    )
    assert probe_image(file) == found.shape[:2]


def test_an_exif_block_after_the_pixels_counts(picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", exif=exif)
    data = buffer.getvalue()
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    np.testing.assert_array_equal(decode_image(moved, "a"), np.rot90(picture, -1))


def test_grey_palette_and_bilevel_become_rgb(tmp_path: Path, picture: np.ndarray) -> None:
    grey = picture[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))
    few = (picture // 128) * 255
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "few.png")
    np.testing.assert_array_equal(read_image(tmp_path / "few.png"), few)
    bits = grey > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[..., 1], bits * 255)


def test_transparency_lies_on_white(picture: np.ndarray) -> None:
    alpha = np.full((HEIGHT, WIDTH), 128, dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    found = decode_image(encode_png(np.dstack([picture, alpha])), "a")
    np.testing.assert_array_equal(found, on_white(picture / 255, alpha[..., None] / 255))
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1], picture[1])
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0]).save(buffer, format="PNG", transparency=int(picture[2, 3, 0]))
    assert (decode_image(buffer.getvalue(), "a")[2, 3] == 255).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png_is_rounded_not_cut(deep: np.ndarray, channels: int) -> None:
    pixels = deep[..., :channels]
    found = decode_image(png_16(pixels), "deep.png")
    if channels in (2, 4):
        colour, alpha = pixels[..., :-1] / 65535, pixels[..., -1:] / 65535
        expected = on_white(np.broadcast_to(colour, (HEIGHT, WIDTH, 3)), alpha)
    else:
        expected = np.broadcast_to(eight_bits(pixels), (HEIGHT, WIDTH, 3))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bit_tiff_is_rounded_and_turned(
    tmp_path: Path, deep: np.ndarray, compression: str | None, byteorder: str
) -> None:
    file = tmp_path / "deep.tif"
    tifffile.imwrite(
        file,
        deep[..., :3],
        photometric="rgb",
        byteorder=byteorder,
        compression=compression,
        extratags=[(274, "H", 1, 6, True)],  # Orientation: turn right.
    )
    np.testing.assert_array_equal(read_image(file), np.rot90(eight_bits(deep[..., :3]), -1))
    assert probe_image(file) == (WIDTH, HEIGHT)


def test_sixteen_bit_tiff_with_transparency(tmp_path: Path, deep: np.ndarray) -> None:
    file = tmp_path / "deep.tif"
    tifffile.imwrite(file, deep, photometric="rgb", extrasamples=["unassalpha"])
    expected = on_white(deep[..., :3] / 65535, deep[..., 3:] / 65535)
    np.testing.assert_array_equal(read_image(file), expected)


def test_sixteen_bit_grey_tiff(tmp_path: Path, deep: np.ndarray) -> None:
    file = tmp_path / "grey.tif"
    tifffile.imwrite(file, deep[..., 0], photometric="minisblack")
    np.testing.assert_array_equal(read_image(file)[..., 2], eight_bits(deep[..., 0]))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bit_planes_keep_their_low_bytes(
    tmp_path: Path, deep: np.ndarray, compression: str | None, channels: int
) -> None:
    """Pillow reads compressed ones without a word, and with the high byte twice."""
    file = tmp_path / "planes.tif"
    planes = deep[..., :channels].transpose(2, 0, 1)
    turned = [(274, "H", 1, 6, True)]
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(
        file,
        planes,
        photometric="rgb",
        planarconfig="separate",
        compression=compression,
        extratags=turned,
        **extra,
    )
    with Image.open(file) as image:
        image.load()
        found = stored_pixels(image, file.read_bytes(), "planes.tif")
    np.testing.assert_array_equal(found, np.rot90(deep[..., :channels], -1))


def test_planes_in_a_compression_that_takes_more_are_refused(
    tmp_path: Path, deep: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "odd.tif"
    planes = deep[..., :3].transpose(2, 0, 1)
    tifffile.imwrite(file, planes, photometric="rgb", planarconfig="separate", compression="zlib")

    def lacking(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", lacking)
    with pytest.raises(QdmrError, match=r"odd\.tif: .*LZW.*; save the picture uncompressed"):
        read_image(file)


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_sixteen_bits_multiplied_with_transparency_are_refused(
    tmp_path: Path, deep: np.ndarray, planarconfig: str
) -> None:
    file = tmp_path / "odd.tif"
    pixels = deep if planarconfig == "contig" else deep.transpose(2, 0, 1)
    tifffile.imwrite(
        file, pixels, photometric="rgb", planarconfig=planarconfig, extrasamples=["assocalpha"]
    )
    with pytest.raises(QdmrError, match=r"odd\.tif: "):
        read_image(file)


def test_sixteen_bit_grey_whose_zero_is_white(tmp_path: Path, deep: np.ndarray) -> None:
    file = tmp_path / "white.tif"
    tifffile.imwrite(file, deep[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(read_image(file)[..., 1], eight_bits(65535 - deep[..., 0]))


def test_twelve_bits_reach_from_black_to_white(tmp_path: Path) -> None:
    file = tmp_path / "twelve.tif"
    # Two values in three bytes: 0 and 4095, then 2048 and 1.
    tifffile.imwrite(file, np.zeros((1, 4), np.uint16), photometric="minisblack")
    data = bytearray(file.read_bytes())
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0].aspage()
        data[page.tags["BitsPerSample"].valueoffset] = 12
        data[page.tags["StripByteCounts"].valueoffset] = 6
        start = page.dataoffsets[0]
    data[start : start + 6] = bytes.fromhex("000fff800001")
    file.write_bytes(data)
    assert read_image(file)[0, :, 0].tolist() == [0, 255, 128, 0]


@pytest.mark.parametrize("mode", ["CMYK", "F", "LAB"])
def test_colours_without_a_known_meaning_are_refused(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "a.tif"
    Image.new(mode, (8, 8)).save(file)
    with pytest.raises(QdmrError, match=rf"a\.tif: colour mode {mode} is not supported"):
        read_image(file)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"cut.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(QdmrError, match=rf"cut\.{kind}: unreadable image") as caught:
        read_image(file)
    assert "\n" not in str(caught.value)


def test_a_wrong_checksum_is_found_where_a_png_is_read_for_training(tmp_path: Path) -> None:
    file = tmp_path / "flipped.png"
    data = bytearray(encode_png(np.zeros((64, 64, 3), dtype=np.uint8)))
    # The checksum of the pixels stands before the last chunk, which takes 12 bytes.
    data[-13] ^= 1
    file.write_bytes(data)
    assert read_image(file).shape == (64, 64, 3)
    with pytest.raises(QdmrError, match=r"^a name: unreadable image"):
        read_checked(file, "a name")


def test_a_probe_reads_the_header_and_a_png_s_end(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 500, 3), dtype=np.uint8)
    whole = encode_png(noise)
    middle = len(whole) // 2
    file = tmp_path / "a.png"
    # The pixels are not looked at, a missing end is found, and so is one with something behind it.
    file.write_bytes(whole[:middle] + bytes(100) + whole[middle + 100 :])
    assert probe_image(file) == (600, 500)
    file.write_bytes(whole[:-100])
    with pytest.raises(QdmrError, match=r"a\.png: unreadable image"):
        probe_image(file)
    file.write_bytes(whole + b"something")
    assert probe_image(file) == (600, 500)


@pytest.mark.parametrize("read", [read_image, probe_image])
def test_what_is_no_image_or_not_there_is_named(tmp_path: Path, read) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(
        QdmrError, match=r"text\.png: unreadable image \(no image of a known kind\)"
    ):
        read(tmp_path / "text.png")
    with pytest.raises(QdmrError, match=r"gone\.png"):
        read(tmp_path / "gone.png")


def test_writing_to_a_full_disk_leaves_nothing(
    tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QdmrError, match=r"a\.png: the disk is full"):
        write_png(tmp_path / "a.png", picture)
    assert list(tmp_path.iterdir()) == []


def test_only_eight_bits_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float64"):
        write_png(tmp_path / "a.png", np.zeros((4, 4, 3)))


def test_a_colour_key_of_sixteen_bits_is_transparent(tmp_path: Path) -> None:
    """PNG's tRNS chunk names one colour: it is white when flattened, as it is with 8 bits."""
    pixels = np.full((2, 3, 3), 20_000, np.uint16)
    pixels[0, 1] = (40_000, 1, 2)
    data = bytes(imagecodecs.png_encode(pixels))
    body = b"tRNS" + struct.pack(">HHH", 40_000, 1, 2)
    key = struct.pack(">I", 6) + body + struct.pack(">I", zlib.crc32(body))
    image = decode_image(data[:33] + key + data[33:], "key.png")
    assert image[0, 1].tolist() == [255, 255, 255]
    assert image[1].tolist() == [[78, 78, 78]] * 3


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
def test_every_compression_of_sixteen_bits_is_exact(
    compression: str | None, order: str, planar: bool
) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        np.moveaxis(values, 2, 0) if planar else values,
        byteorder=order,
        compression=compression,
        photometric="rgb",
        planarconfig="separate" if planar else "contig",
        metadata=None,
    )
    expected = (values.astype(np.uint32) + 128) // 257
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "a.tif"), expected)
