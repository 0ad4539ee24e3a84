"""Photographs go out as they came in: bits, transparency, EXIF data, colour profile."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import read_image
from qdmr_ray.photographs.files import Photograph, read_photograph, write_photograph

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
        ("moving.gif", "holds several frames"),
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


@pytest.mark.parametrize(
    ("kind", "shape", "ending", "reason"),
    [
        (np.uint16, (4, 4, 3), ".jpg", "16 bits a channel"),
        (np.uint8, (4, 4, 4), ".jpg", "transparency"),
        (np.uint8, (1, 17_000, 3), ".webp", "17000x1 pixels"),
        (np.uint8, (66_000, 1, 3), ".jpeg", "1x66000 pixels"),
    ],
)
def test_what_a_format_has_no_room_for_is_said(
    kind: type, shape: tuple[int, ...], ending: str, reason: str, tmp_path: Path
) -> None:
    pixels = noise(*shape, dtype=kind)
    alpha = pixels[..., 3] if shape[2] == 4 else None
    own = Photograph(
        pixels=pixels[..., :3], alpha=alpha, grey=False, exif=Image.Exif(), profile=b""
    )
    path = tmp_path / f"a{ending}"
    with pytest.raises(
        QdmrError, match=rf"a\{ending}: has {reason}.* rename it to \.png or"
    ) as caught:
        write_photograph(path, own, own.pixels)
    assert "\n" not in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize(
    ("tag", "value"), [(ExifTags.Base.MakerNote, b"x" * 65_600), (ExifTags.Base.ISOSpeed, 2**70)]
)
def test_exif_that_cannot_be_written_is_left_out_and_said(
    tag: int, value: object, tmp_path: Path
) -> None:
    data = exif()
    table = {**data.get_ifd(ExifTags.IFD.Exif), tag: value}
    data[ExifTags.IFD.Exif] = table
    pixels = noise(8, 9, 3)
    own = Photograph(pixels=pixels, alpha=None, grey=False, exif=data, profile=PROFILE)
    lost = write_photograph(tmp_path / "a.jpg", own, pixels)
    assert len(lost) == 1
    assert "EXIF" in lost[0]
    found = read_photograph(tmp_path / "a.jpg")
    assert found.profile == PROFILE
    assert not len(found.exif)


def test_the_first_of_a_cameras_jpeg_with_preview(tmp_path: Path) -> None:
    main, preview = Image.fromarray(noise(40, 60, 3)), Image.fromarray(noise(20, 30, 3))
    main.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview], exif=exif())
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
        expected = np.asarray(image)
    found = read_photograph(tmp_path / "a.jpg")
    assert np.array_equal(found.pixels, expected)
    assert found.exif[ExifTags.Base.Make] == MAKER
    write_photograph(tmp_path / "out.jpg", found, found.pixels)
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["photograph first", "thumbnail first"])
def test_the_photograph_of_a_tiff_with_a_thumbnail(kind: type, order: str, tmp_path: Path) -> None:
    pixels = noise(10, 14, 3, dtype=kind)
    pages = [(pixels, 0, MAKER), (pixels[::2, ::2], 1, "thumbnail")]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page, subfile, text in pages if order == "photograph first" else reversed(pages):
            make = [(271, 2, 0, text, True)]
            file.write(page, photometric="rgb", subfiletype=subfile, extratags=make, metadata=None)
    found = read_photograph(tmp_path / "a.tif")
    assert np.array_equal(found.pixels, pixels)
    assert found.exif[ExifTags.Base.Make] == MAKER


def test_several_photographs_in_one_file_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(6, 7, 3)), Image.fromarray(noise(6, 7, 3) // 2)]
    for ending in ("tif", "png", "webp"):
        path = tmp_path / f"many.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        with pytest.raises(QdmrError, match=rf"many\.{ending}: holds several frames"):
            read_photograph(path)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
def test_nothing_is_added(ending: str, tmp_path: Path) -> None:
    path, out = tmp_path / f"in{ending}", tmp_path / f"out{ending}"
    Image.fromarray(noise(8, 9, 3)).save(path)
    write_photograph(out, read_photograph(path), noise(8, 9, 3))
    with Image.open(path) as before, Image.open(out) as after:
        assert after.info.keys() - {"compression"} == before.info.keys() - {"compression"}
        assert after.info.get("dpi") == before.info.get("dpi")
        assert ExifTags.IFD.Exif not in after.getexif()
        assert ExifTags.IFD.GPSInfo not in after.getexif()


def xmp(orientation: int, width: int, height: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
        b'tiff:Orientation="%d" dc:title="Night"><exif:PixelXDimension>%d</exif:PixelXDimension>'
        b"<exif:PixelYDimension>%d</exif:PixelYDimension></rdf:Description></x:xmpmeta>"
    ) % (orientation, width, height)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
def test_sizes_and_directions_are_those_of_the_turned_photograph(
    ending: str, kind: type, tmp_path: Path
) -> None:
    if kind == np.uint16 and ending in (".jpg", ".webp"):
        pytest.skip("8 bits only")
    data = exif(orientation=6)
    table = data.get_ifd(ExifTags.IFD.Exif)
    table |= {ExifTags.Base.ExifImageWidth: 30, ExifTags.Base.ExifImageHeight: 20}
    data[ExifTags.IFD.Exif] = dict(table)
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "in.jpg", exif=data, xmp=xmp(6, 30, 20))
    photograph = read_photograph(tmp_path / "in.jpg")
    assert photograph.pixels.shape == (30, 20, 3)
    write_photograph(tmp_path / f"out{ending}", photograph, noise(30, 20, 3, dtype=kind))
    found = read_photograph(tmp_path / f"out{ending}")
    assert found.pixels.shape == (30, 20, 3)
    assert found.extras.xmp == xmp(1, 20, 30)
    if (kind, ending) != (np.uint16, ".tif"):
        table = found.exif.get_ifd(ExifTags.IFD.Exif)
        assert table[ExifTags.Base.ExifImageWidth] == 20
        assert table[ExifTags.Base.ExifImageHeight] == 30


def test_a_jpeg_keeps_density_comment_and_caption(tmp_path: Path) -> None:
    body = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x06\x1c\x02\x78\0\x01A"
    caption = b"\xff\xed" + (len(body) + 2).to_bytes(2, "big") + body
    Image.fromarray(noise(8, 9, 3)).save(
        tmp_path / "in.jpg", dpi=(300, 240), comment=b"the harbour", extra=caption
    )
    write_photograph(tmp_path / "out.jpg", read_photograph(tmp_path / "in.jpg"), noise(8, 9, 3))
    with Image.open(tmp_path / "in.jpg") as before, Image.open(tmp_path / "out.jpg") as after:
        assert after.info["dpi"] == (300, 240)
        assert after.info["comment"] == b"the harbour"
        assert after.info["photoshop"] == before.info["photoshop"] != {}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_png_keeps_density_colours_and_texts(kind: type, tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "Night")
    texts.add_text("Description", "much", zip=True)
    texts.add_itxt("Author", "Ä")
    texts.add(b"gAMA", (45455).to_bytes(4, "big"))
    texts.add(b"cHRM", b"".join(v.to_bytes(4, "big") for v in range(1, 9)))
    Image.fromarray(noise(8, 9, 3)).save(tmp_path / "in.png", pnginfo=texts, dpi=(300, 300))
    photograph = read_photograph(tmp_path / "in.png")
    write_photograph(tmp_path / "out.png", photograph, noise(8, 9, 3, dtype=kind))
    with Image.open(tmp_path / "in.png") as before, Image.open(tmp_path / "out.png") as after:
        before.load()
        after.load()
        assert {"Title", "Description", "Author", "gamma", "chromaticity", "dpi"} <= set(after.info)
        assert after.info == before.info


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_keeps_its_density(kind: type, tmp_path: Path) -> None:
    pixels = noise(8, 9, 3, dtype=kind)
    tifffile.imwrite(
        tmp_path / "in.tif", pixels, photometric="rgb", resolution=(118, 118), resolutionunit=3
    )
    write_photograph(tmp_path / "out.tif", read_photograph(tmp_path / "in.tif"), pixels)
    with Image.open(tmp_path / "out.tif") as after:
        tags = after.getexif()
        assert (tags[282], tags[283], tags[296]) == (118, 118, 3)
