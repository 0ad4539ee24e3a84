"""Photographs go out as they came in: bits, transparency, EXIF data, colour profile."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from qdmr_ray.data.images import read_image
from qdmr_ray.data.photographs import Photograph, read_photograph, write_photograph
from qdmr_ray.errors import QdmrError

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKER = "Simple Lens Works"
EXPOSURE = (1, 250)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    values = np.random.default_rng(sum(shape)).integers(0, np.iinfo(dtype).max + 1, shape)
    return values.astype(dtype)


def exif(orientation: int | None = None) -> Image.Exif:
    made = Image.Exif()
    made[ExifTags.Base.Make] = MAKER
    table = made.get_ifd(ExifTags.IFD.Exif)
    table[ExifTags.Base.ExposureTime] = EXPOSURE[0] / EXPOSURE[1]
    # Pillow writes it into a TIFF only when it stands among the tags, too.
    made[ExifTags.IFD.Exif] = dict(table)
    if orientation is not None:
        made[ExifTags.Base.Orientation] = orientation
    return made


def through(path: Path, out: Path) -> Photograph:
    """What comes back after the photograph has been written with its own pixels."""
    photograph = read_photograph(path)
    write_photograph(out, photograph, photograph.pixels)
    return read_photograph(out)


@pytest.mark.parametrize("ending", [".png", ".tif", ".webp", ".jpg"])
def test_exif_and_profile_of_eight_bits_are_kept(ending: str, tmp_path: Path) -> None:
    pixels = noise(20, 30, 3)
    path = tmp_path / f"in{ending}"
    options = {"lossless": True} if ending == ".webp" else {}
    Image.fromarray(pixels).save(path, exif=exif(), icc_profile=PROFILE, **options)
    found = through(path, tmp_path / f"out{ending}")
    assert found.profile == PROFILE
    assert found.exif[ExifTags.Base.Make] == MAKER
    exposure = found.exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime]
    assert float(exposure) == pytest.approx(EXPOSURE[0] / EXPOSURE[1])
    if ending != ".jpg":
        assert np.array_equal(found.pixels, pixels)
    assert found.alpha is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_come_out_upright_and_say_so(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    Image.fromarray(noise(20, 30, 3)).save(path, exif=exif(orientation))
    photograph = read_photograph(path)
    assert np.array_equal(photograph.pixels, read_image(path))
    found = through(path, tmp_path / "out.png")
    assert found.exif[ExifTags.Base.Orientation] == 1
    assert np.array_equal(found.pixels, photograph.pixels)


@pytest.mark.parametrize("ending", [".png", ".tif", ".webp"])
def test_transparency_is_kept(ending: str, tmp_path: Path) -> None:
    pixels = noise(12, 9, 4)
    # WebP may change the colour of what can't be seen.
    pixels[..., 3] |= 1
    path = tmp_path / f"in{ending}"
    options = {"lossless": True} if ending == ".webp" else {}
    Image.fromarray(pixels).save(path, **options)
    found = through(path, tmp_path / f"out{ending}")
    assert np.array_equal(found.pixels, pixels[..., :3])
    assert found.alpha is not None
    assert np.array_equal(found.alpha, pixels[..., 3])


# Pillow reads no 16-bit TIFF of grey and alpha.
@pytest.mark.parametrize(
    ("ending", "channels"),
    [(".png", 1), (".png", 2), (".png", 3), (".png", 4), (".tif", 1), (".tif", 3), (".tif", 4)],
)
def test_sixteen_bits_are_kept_exactly(ending: str, channels: int, tmp_path: Path) -> None:
    """The file that comes in is written by another hand: tifffile, or this module's own PNG."""
    pixels = noise(11, 17, channels, dtype=np.uint16)
    path = tmp_path / f"in{ending}"
    if ending == ".tif":
        kind = "rgb" if channels > 2 else "minisblack"
        extra = ["unassalpha"] if channels == 4 else None
        values = pixels[..., 0] if channels == 1 else pixels
        contiguous = None if channels == 1 else "contig"
        tifffile.imwrite(
            path, values, photometric=kind, extrasamples=extra, planarconfig=contiguous
        )
    else:
        colour = np.repeat(pixels[..., :1], 3, axis=2) if channels < 3 else pixels[..., :3]
        alpha = pixels[..., -1] if channels in (2, 4) else None
        own = Photograph(
            pixels=colour, alpha=alpha, grey=channels < 3, exif=exif(), profile=PROFILE
        )
        write_photograph(path, own, colour)
    found = through(path, tmp_path / f"out{ending}")
    assert found.pixels.dtype == np.uint16
    assert found.grey == (channels < 3)
    colours = 1 if channels < 3 else 3
    assert np.array_equal(found.pixels[..., :colours], pixels[..., :colours])
    assert (found.alpha is not None) == (channels in (2, 4))
    if found.alpha is not None:
        assert np.array_equal(found.alpha, pixels[..., -1])
    if ending == ".png":
        assert found.profile == PROFILE
        assert found.exif[ExifTags.Base.Make] == MAKER


def test_a_sixteen_bit_png_is_read_by_others(tmp_path: Path) -> None:
    """Pillow reads its high bytes, and checks its chunks' checksums."""
    pixels = noise(8, 9, 3, dtype=np.uint16)
    own = Photograph(pixels=pixels, alpha=None, grey=False, exif=exif(), profile=PROFILE)
    write_photograph(tmp_path / "a.png", own, pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert np.array_equal(np.asarray(image), (pixels >> 8).astype(np.uint8))
        assert image.info["icc_profile"] == PROFILE


def test_a_sixteen_bit_tiff_keeps_profile_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "in.tif"
    make = [(271, 2, 0, MAKER, True)]
    pixels = noise(8, 9, 3, dtype=np.uint16)
    tifffile.imwrite(path, pixels, photometric="rgb", iccprofile=PROFILE, extratags=make)
    found = through(path, tmp_path / "out.tif")
    assert found.profile == PROFILE
    assert found.exif[ExifTags.Base.Make] == MAKER


def test_grey_stays_grey(tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    Image.fromarray(noise(8, 9)).save(path)
    photograph = read_photograph(path)
    corrected = photograph.pixels.copy()
    corrected[0, 0] = (10, 20, 33)
    write_photograph(tmp_path / "out.png", photograph, corrected)
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == "L"
        assert np.asarray(image)[0, 0] == 21


def gif(frames: int) -> bytes:
    pictures = [Image.fromarray(noise(6, 7 + 0 * i, 3)) for i in range(frames)]
    pictures = [p.point(lambda v, i=i: (v + 40 * i) % 256) for i, p in enumerate(pictures)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def test_what_is_no_single_photograph_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "moving.gif").write_bytes(gif(3))
    Image.fromarray(noise(6, 7, 4), mode="CMYK").save(tmp_path / "print.tif")
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("moving.gif", "holds 3 frames"),
        ("print.tif", "colour mode CMYK is not supported"),
        ("text.png", "no image of a known kind"),
        ("folder.png", "is a folder"),
        ("missing.png", "No such file"),
    ):
        with pytest.raises(QdmrError, match=reason) as caught:
            read_photograph(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_still_gif_is_a_photograph(tmp_path: Path) -> None:
    (tmp_path / "still.gif").write_bytes(gif(1))
    assert read_photograph(tmp_path / "still.gif").pixels.shape == (6, 7, 3)


def test_a_very_wide_photograph_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses more than twice this limit unless told otherwise; it is there afterwards."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(noise(1, 100_000, 3)).save(tmp_path / "wide.png")
    assert read_photograph(tmp_path / "wide.png").pixels.shape == (1, 100_000, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_sixteen_bits_do_not_fit_a_jpeg(tmp_path: Path) -> None:
    pixels = noise(4, 4, 3, dtype=np.uint16)
    own = Photograph(pixels=pixels, alpha=None, grey=False, exif=Image.Exif(), profile=b"")
    with pytest.raises(ValueError, match="only PNG and TIFF"):
        write_photograph(tmp_path / "a.jpg", own, pixels)
