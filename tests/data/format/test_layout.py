"""Photographs lie in strips, those of older datasets in whole rows; both read as the same."""

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from faulty_store import FaultyStore, Request

from qdmr_ray.data.contact_sheet import contact_sheet
from qdmr_ray.data.format import reader as reading
from qdmr_ray.data.format import shards
from qdmr_ray.data.format.index import set_index
from qdmr_ray.data.format.layout import STRIP_PIXELS
from qdmr_ray.data.format.manifest import Manifest, read_manifest
from qdmr_ray.data.format.reader import BrokenRecordError, RecordReader
from qdmr_ray.data.format.verify import verify
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import open_location

# Written on 2026-11-28 by the last version that stored whole rows, from the pictures below.
WHOLE_ROWS = Path(__file__).with_name("whole_rows.tar.xz")
DIGEST = "c517c0f1cd6a42058f7d3d7685fc9be640feef234360a68eeebd9aeeed62e38f"
PAIRS = PackSettings(source_images="images", source_ground_truth="truth")
HEIGHT, WIDTH, CROP = 70, 600, 64


def picture(shift: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Returns uint8 (height, width, 3) in which neighbouring pixels differ."""
    y, x, channel = np.ogrid[:height, :width, :3]
    return ((3 * y + (channel + 1) * x + shift) % 256).astype(np.uint8)


def save(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(exist_ok=True)
    write_png(file, image)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for folder, shift in (("images", 1), ("truth", 0)):
        save(tmp_path / folder / "a.png", picture(shift))
    return tmp_path


@pytest.fixture
def strips(photographs: Path) -> Path:
    pack(photographs, str(photographs / "strips"), settings=PAIRS)
    return photographs / "strips"


@pytest.fixture
def whole_rows(tmp_path: Path) -> Path:
    with tarfile.open(WHOLE_ROWS) as archive:
        archive.extractall(tmp_path / "whole_rows", filter="data")
    return tmp_path / "whole_rows"


@pytest.fixture(params=["strips", "whole_rows"])
def packed(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def manifest_of(folder: Path) -> Manifest:
    return read_manifest(open_location(folder))


def test_a_record_is_the_photograph(packed: Path) -> None:
    record = RecordReader(str(packed)).read("source", 0)
    assert record.ground_truth is not None
    np.testing.assert_array_equal(record.image, picture(1))
    np.testing.assert_array_equal(record.ground_truth, picture(0))
    assert record.image.flags.writeable


def test_a_crop_is_the_photograph_at_every_place(packed: Path) -> None:
    reader = RecordReader(str(packed))
    out = np.empty((3, CROP, CROP), dtype=np.uint8)
    for top in range(HEIGHT - CROP + 1):
        for left in range(0, WIDTH - CROP + 1, 1 if top == 3 else 67):
            expected = picture(0)[top : top + CROP, left : left + CROP].transpose(2, 0, 1)
            place = {"top": top, "left": left, "size": CROP, "ground_truth": True}
            np.testing.assert_array_equal(reader.crop("source", 0, **place), expected)
            assert reader.crop("source", 0, **place, out=out) is out
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("width", [1, STRIP_PIXELS - 1, STRIP_PIXELS, STRIP_PIXELS + 1, 1100])
def test_photographs_of_any_width_come_back(tmp_path: Path, width: int) -> None:
    save(tmp_path / "images" / "a.png", picture(0, width, height=129))
    settings = PackSettings(target_images="images")
    pack(tmp_path, str(tmp_path / "packed"), settings=settings)
    reader = RecordReader(str(tmp_path / "packed"))
    np.testing.assert_array_equal(reader.read("target", 0).image, picture(0, width, height=129))
    assert verify(str(tmp_path / "packed")) == ()
    side = min(width, 129)
    crop = reader.crop("target", 0, top=129 - side, left=width - side, size=side)
    expected = picture(0, width, height=129)[129 - side :, width - side :]
    np.testing.assert_array_equal(crop, expected.transpose(2, 0, 1))


def test_any_parquet_reader_puts_strips_together(strips: Path) -> None:
    """The lines of ``datasets/README.md``."""
    row = pq.read_table(next(strips.glob("source-0*.parquet"))).slice(0, 1).to_pylist()[0]
    data, height = np.frombuffer(row["image"], np.uint8), row["height"]
    step = 3 * height * 512
    strips_of_row = np.split(data, range(step, len(data), step))
    pixels = np.concatenate([s.reshape(height, 3, -1) for s in strips_of_row], axis=2)
    np.testing.assert_array_equal(pixels.transpose(0, 2, 1), picture(1))


def test_the_layout_changes_no_digest(strips: Path, whole_rows: Path) -> None:
    old, new = manifest_of(whole_rows), manifest_of(strips)
    assert old.digest == new.digest == DIGEST
    assert old.set("source").content == new.set("source").content
    assert (old.set("source").strip_pixels, new.set("source").strip_pixels) == (None, 512)


def test_both_layouts_are_whole_and_look_the_same(strips: Path, whole_rows: Path) -> None:
    assert verify(str(strips)) == verify(str(whole_rows)) == ()
    sheets = [contact_sheet(RecordReader(str(folder))) for folder in (strips, whole_rows)]
    np.testing.assert_array_equal(*sheets)


def test_a_damaged_pixel_is_found_where_it_lies(packed: Path) -> None:
    entry = manifest_of(packed).set("source")
    record = set_index(open_location(packed), entry)[0]
    file = packed / entry.shards[0].file
    data = bytearray(file.read_bytes())
    # The last byte: row 69 of the last strip, which begins at column 512.
    data[record.image_offset + record.image_bytes - 1] ^= 1
    file.write_bytes(data)
    assert [problem.row for problem in verify(str(packed))] == [0]
    reader = RecordReader(str(packed))
    reader.crop("source", 0, top=0, left=0, size=CROP)
    reader.crop("source", 0, top=6, left=536, size=CROP, ground_truth=True)
    with pytest.raises(BrokenRecordError, match=rf"{file.name}: wrong checksum.*\(row 0, .*a\.png"):
        reader.crop("source", 0, top=6, left=536, size=CROP)


def test_a_crop_is_a_request_for_each_strip_and_a_record_one(
    strips: Path, faulty_store: FaultyStore
) -> None:
    for file in strips.iterdir():
        faulty_store.put(f"packed/{file.name}", file.read_bytes())
    reader = RecordReader(f"s3://{faulty_store.bucket}/packed")
    reader.index("source")

    def asked(**place: int) -> list[int]:
        """Returns the bytes of each request."""
        faulty_store.heal()
        reader.crop("source", 0, **place) if place else reader.read("source", 0)
        return [length(request) for request in faulty_store.requests]

    assert asked(top=0, left=0, size=CROP) == [64 * 3 * 512]
    assert asked(top=0, left=500, size=CROP) == [64 * 3 * 512, 64 * 3 * 88]
    assert asked() == [HEIGHT * 3 * WIDTH] * 2


def length(request: Request) -> int:
    assert request.method == "GET"
    assert request.range is not None
    first, last = re.findall(r"\d+", request.range)
    return int(last) - int(first) + 1


def test_a_packing_that_an_older_version_began_is_begun_anew(
    photographs: Path, strips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = (
        photographs / "out",
        PackSettings(
            source_images="images", source_ground_truth="truth", target_images="photographs"
        ),
    )
    broken = photographs / "photographs" / "b.jpg"
    save(broken.with_suffix(".png"), picture(7))
    with monkeypatch.context() as older:
        older.setattr(shards, "STRIP_PIXELS", None)
        older.setattr(Manifest, "FORMAT", 2)
        older.setattr(shards, "read_checked", _fails_for("b.png"))
        with pytest.raises(QdmrError, match="1 finished shards wait for the next try"):
            pack(photographs, str(out), settings=settings)
    assert len(list(out.glob("source-*.parquet"))) == 1
    pack(photographs, str(out), settings=settings)
    pack(photographs, str(photographs / "undisturbed"), settings=settings)
    assert content(out) == content(photographs / "undisturbed")


def _fails_for(name: str):
    def read(path: Path, shown: str) -> np.ndarray:
        if path.name == name:
            raise QdmrError(f"{shown}: unreadable")
        return decode(path, shown)

    decode = shards.read_checked
    return read


def test_packing_again_replaces_whole_rows(photographs: Path, whole_rows: Path) -> None:
    manifest = pack(photographs, str(whole_rows), settings=PAIRS)
    assert {*content(whole_rows)} == {"manifest.json", *(file.file for file in manifest.files)}
    assert verify(str(whole_rows)) == ()


def test_no_more_shards_stay_mapped_than_a_process_may_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, count = 4, 11
    for i in range(count):
        save(tmp_path / "images" / f"{i:02}.png", picture(i, 20, 20))
    settings = PackSettings(target_images="images", shard_records=1)
    pack(tmp_path, str(tmp_path / "packed"), settings=settings)
    monkeypatch.setattr(reading, "_MOST_MAPPED", most)
    reader = RecordReader(str(tmp_path / "packed"))
    reader.index("target")
    views = [reader.crop("target", i, top=0, left=0, size=8) for i in range(count)]
    # What was let go stays mapped for those who look at it, even when the file is gone.
    assert len(mapped_files(tmp_path)) == count
    shutil.rmtree(tmp_path / "packed")
    for i, view in enumerate(views):
        np.testing.assert_array_equal(view, picture(i, 8, 8).transpose(2, 0, 1))
    del views, view
    assert len(mapped_files(tmp_path)) == most
    # The shard used longest ago goes first: one more use keeps it.
    reader.crop("target", count - most, top=0, left=0, size=8)
    with pytest.raises(QdmrError, match="is missing"):
        reader.crop("target", 0, top=0, left=0, size=8)
    assert len(mapped_files(tmp_path)) == most


def mapped_files(folder: Path) -> set[str]:
    """Returns the shards below ``folder`` that this process has mapped."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {line for line in maps if str(folder) in line and ".parquet" in line}
