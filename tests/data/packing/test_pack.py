"""Packing is lossless and repeatable; reading and verifying name what is broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from qdmr_ray.cli import main as cli
from qdmr_ray.data.format.index import RecordEntry, set_index
from qdmr_ray.data.format.manifest import Manifest, read_manifest
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.data.format.verify import check_complete, verify
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.storage import any_path, location_of, open_location

SMALL_SHARDS = PackSettings(shard_records=2)


def noise(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def realab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("Realab")
    for seed, (folder, count) in enumerate(
        {
            "Syn/gt": 5,
            "Syn/L/train": 5,
            "Real-Sim/L/train": 3,
            "Real-Sim/L/val": 2,
            "Real-Sim/L/val_gt": 2,
        }.items()
    ):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            write_png(root / folder / f"{i}.png", noise(100 * seed + i))
    # One pair of another size, one photograph with a rotation mark.
    write_png(root / "Syn/gt/4.png", noise(998, 24, 40))
    write_png(root / "Syn/L/train/4.png", noise(999, 24, 40))
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(noise(7)).save(root / "Real-Sim/L/train/2.png", exif=exif)
    return root


@pytest.fixture
def packed(realab: Path, tmp_path: Path) -> Path:
    pack(realab, str(tmp_path / "packed"), settings=SMALL_SHARDS)
    return tmp_path / "packed"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def shard(folder: Path, name: str) -> Path:
    return next(folder.glob(f"{name}-*.parquet"))


def test_every_pixel_comes_back(realab: Path, packed: Path) -> None:
    reader = RecordReader(str(packed))
    assert {name: reader.count(name) for name in ("source", "target", "test")} == {
        "source": 5,
        "target": 3,
        "test": 2,
    }
    for i in range(5):
        record = reader.read("source", i)
        assert record.name == str(i)
        np.testing.assert_array_equal(record.image, read_image(realab / f"Syn/L/train/{i}.png"))
        np.testing.assert_array_equal(record.ground_truth, read_image(realab / f"Syn/gt/{i}.png"))
    turned = reader.read("target", 2)
    np.testing.assert_array_equal(turned.image, np.rot90(noise(7)))
    assert turned.ground_truth is None
    assert turned.image.flags.writeable


def test_crops_are_the_image_at_that_place(realab: Path, packed: Path) -> None:
    reader = RecordReader(str(packed))
    crop = reader.crop("source", 3, top=5, left=9, size=8, ground_truth=True)
    expected = read_image(realab / "Syn/gt/3.png")[5:13, 9:17].transpose(2, 0, 1)
    np.testing.assert_array_equal(crop, expected)
    with pytest.raises(ValueError, match="does not fit 30 x 20"):
        reader.crop("source", 3, top=13, left=0, size=8)
    with pytest.raises(IndexError):
        reader.crop("source", 5, top=0, left=0, size=8)
    with pytest.raises(QdmrError, match=r"target set .* has no ground truth"):
        reader.crop("target", 0, top=0, left=0, size=5, ground_truth=True)
    with pytest.raises(QdmrError, match="no validation set; it has: source, target, test"):
        reader.count("validation")


def test_any_parquet_reader_sees_the_records(realab: Path, packed: Path) -> None:
    table = pq.read_table(shard(packed, "source-000000"))
    row = table.slice(1, 1).to_pylist()[0]
    pixels = np.frombuffer(row["image"], dtype=np.uint8).reshape(row["height"], 3, row["width"])
    np.testing.assert_array_equal(
        pixels.transpose(0, 2, 1), read_image(realab / "Syn/L/train/1.png")
    )
    assert (row["set"], row["name"]) == ("source", "1")
    assert (row["origin"], row["ground_truth_origin"]) == ("Syn/L/train/1.png", "Syn/gt/1.png")


def test_any_arrow_reader_sees_the_index(packed: Path) -> None:
    table = pa.ipc.open_file(next(packed.glob("source-index-*.arrow"))).read_all()
    assert table["origin"].to_pylist() == [f"Syn/L/train/{i}.png" for i in range(5)]
    assert table["height"].to_pylist() == [20, 20, 20, 20, 24]
    data = np.fromfile(shard(packed, "source-000000"), dtype=np.uint8)
    offset = table["ground_truth_offset"][1].as_py()
    pixels = RecordReader(str(packed)).read("source", 1).ground_truth
    assert pixels is not None
    lines = np.ascontiguousarray(pixels.transpose(0, 2, 1)).reshape(-1)
    np.testing.assert_array_equal(data[offset : offset + lines.size], lines)
    assert table["ground_truth_bands"][1].as_py() == [zlib.crc32(lines)]


def test_the_manifest_says_what_there_is(packed: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    source = manifest["sets"]["source"]
    assert manifest["lens"] == "L"
    assert manifest["schema_version"] == 3
    assert source["images"] == 5
    assert source["paired"] is True
    assert source["sizes"] == [
        {"height": 20, "width": 30, "images": 4},
        {"height": 24, "width": 40, "images": 1},
    ]
    assert [entry["rows"] for entry in source["shards"]] == [2, 2, 1]
    assert source["shards"][1]["bytes"] == (packed / source["shards"][1]["file"]).stat().st_size
    reader = RecordReader(str(packed))
    pixels = np.concatenate([reader.read("source", i).image.reshape(-1, 3) for i in range(5)])
    found = source["image"]
    np.testing.assert_allclose(found["mean"], pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["std"], pixels.std(axis=0), atol=1e-6)
    assert found["minimum"] == pixels.min(axis=0).tolist()
    assert found["maximum"] == pixels.max(axis=0).tolist()
    assert source["ground_truth"]["mean"] != found["mean"]
    assert manifest["sets"]["target"]["ground_truth"] is None
    assert manifest["sets"]["target"]["paired"] is False


def test_the_same_photographs_give_the_same_bytes_anywhere(
    realab: Path, packed: Path, tmp_path: Path
) -> None:
    shutil.copytree(realab, tmp_path / "moved")
    pack(tmp_path / "moved", str(tmp_path / "again"), settings=SMALL_SHARDS)
    assert content(tmp_path / "again") == content(packed)


def test_the_digest_is_of_the_content_not_of_the_shards(
    realab: Path, packed: Path, tmp_path: Path
) -> None:
    whole = pack(realab, str(tmp_path / "whole"), settings=PackSettings())
    assert whole.digest == read(packed).digest
    shutil.copytree(realab, tmp_path / "changed")
    write_png(tmp_path / "changed/Syn/gt/0.png", noise(12345))
    changed = pack(tmp_path / "changed", str(tmp_path / "other"), settings=PackSettings())
    assert changed.digest != whole.digest


def test_shards_are_bounded_in_bytes(realab: Path, tmp_path: Path) -> None:
    pair_bytes = 2 * 3 * 20 * 30
    settings = PackSettings(shard_bytes=2 * pair_bytes)
    manifest = pack(realab, str(tmp_path / "out"), settings=settings)
    assert [part.rows for part in manifest.set("source").shards] == [2, 2, 1]
    tiny = pack(realab, str(tmp_path / "tiny"), settings=PackSettings(shard_bytes=1))
    assert len(tiny.set("source").shards) == 5


def test_progress_ends_with_everything(realab: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    pack(
        realab,
        str(tmp_path / "out"),
        settings=SMALL_SHARDS,
        progress=lambda done, total: calls.append((done, total)),
    )
    # Each of the ten records is checked, then packed.
    assert calls[-1] == (20, 20)
    assert calls == sorted(calls)
    calls.clear()
    verify(str(tmp_path / "out"), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (10, 10)


def test_packing_again_replaces_what_was_there(realab: Path, packed: Path) -> None:
    (packed / ".tmp-left-over").write_bytes(b"half")
    (packed / "notes.txt").write_text("mine")
    pack(realab, str(packed), settings=PackSettings(shard_records=3))
    files = {file.file for file in read(packed).files}
    assert set(content(packed)) == files | {"manifest.json", "notes.txt"}
    assert verify(str(packed)) == ()


def read(folder: Path) -> Manifest:
    return read_manifest(open_location(folder))


@pytest.mark.parametrize("before", [True, False])
def test_a_failed_packing_loses_nothing_and_goes_on_where_it_stopped(
    realab: Path, tmp_path: Path, before: bool
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(realab, source)
    if before:
        pack(source, str(out), settings=SMALL_SHARDS)
    old = content(out) if before else {}
    write_png(source / "Syn/gt/0.png", noise(4321))
    # Broken in a way that only decoding shows: half of a JPEG.
    last = source / "Real-Sim/L/val/1.png"
    last.unlink()
    broken = last.with_suffix(".jpg")
    Image.fromarray(noise(1)).save(broken)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) * 3 // 4])
    message = r"val/1\.jpg: unreadable image .*\(test shard 0, row 1\)"
    with pytest.raises(QdmrError, match=message):
        pack(source, str(out), settings=SMALL_SHARDS)
    assert {name: data for name, data in content(out).items() if name in old} == old
    assert (out / "manifest.json").exists() == before
    if before:
        assert verify(str(out)) == ()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert finished
    broken.write_bytes(whole)
    pack(source, str(out), settings=SMALL_SHARDS)
    kept = [path for path in out.glob("*.parquet") if path.name in finished]
    # Only the test set's shard was written in the second attempt.
    assert len(kept) == 5
    assert all(path.stat().st_mtime_ns == finished[path.name] for path in kept)
    pack(source, str(tmp_path / "undisturbed"), settings=SMALL_SHARDS)
    assert content(out) == content(tmp_path / "undisturbed")


def test_what_was_finished_from_other_photographs_is_packed_again(
    realab: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(realab, source)
    last = source / "Real-Sim/L/val_gt/1.png"
    good = last.read_bytes()
    write_png(last, np.full((20, 30, 3), 7, dtype=np.uint8))
    with pytest.raises(QdmrError, match=r"val_gt/1\.png: every pixel has the same value"):
        pack(source, str(out), settings=SMALL_SHARDS)
    last.write_bytes(good)
    write_png(source / "Syn/gt/0.png", noise(4321))
    pack(source, str(out), settings=SMALL_SHARDS)
    changed = RecordReader(str(out)).read("source", 0).ground_truth
    np.testing.assert_array_equal(changed, noise(4321))


KILLED = """
import sys
from pathlib import Path
from qdmr_ray.data.packing.pack import (PackSettings, pack)
print("packing", flush=True)
pack(Path(sys.argv[1]), sys.argv[2], settings=PackSettings(shard_records=1))
"""


@pytest.mark.slow
def test_killed_at_any_time_the_manifest_is_that_of_an_undisturbed_run(
    realab: Path, tmp_path: Path
) -> None:
    pack(realab, str(tmp_path / "undisturbed"), settings=PackSettings(shard_records=1))
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(realab), str(out)]
    random = np.random.default_rng(4)
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.wait()
        process.stdout.close()
    subprocess.run(command, check=True, capture_output=True)
    assert not (out / "unfinished").exists()
    assert content(out) == content(tmp_path / "undisturbed")


def test_bad_images_are_left_out_by_name_when_a_setting_says_so(
    realab: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(realab, source)
    write_png(source / "Syn/gt/2.png", np.full((20, 30, 3), 9, dtype=np.uint8))
    (source / "Real-Sim/L/train/0.png").write_bytes(b"text")
    with pytest.raises(QdmrError, match=r"0\.png: unreadable"):
        pack(source, str(tmp_path / "out"), settings=SMALL_SHARDS)
    assert not (tmp_path / "out").exists()
    settings = PackSettings(shard_records=2, bad_images="leave_out")
    manifest = pack(source, str(tmp_path / "out"), settings=settings)
    assert [(file.set, file.origin) for file in manifest.left_out] == [
        ("source", "Syn/L/train/2.png"),
        ("target", "Real-Sim/L/train/0.png"),
    ]
    assert "Syn/gt/2.png: every pixel has the same value" in manifest.left_out[0].reason
    reader = RecordReader(str(tmp_path / "out"))
    assert reader.manifest == manifest
    assert [reader.read("source", i).name for i in range(4)] == ["0", "1", "3", "4"]
    assert reader.count("target") == 2
    for path in (source / "Real-Sim/L/train").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(QdmrError, match="no image of the target set can be used"):
        pack(source, str(tmp_path / "other"), settings=settings)


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    """Where NaN could hide: pixels are 8 bits from packing on."""
    (tmp_path / "photos").mkdir()
    pixels = np.full((16, 16), np.nan, dtype=np.float32)
    Image.fromarray(pixels).save(tmp_path / "photos/a.tif")
    with pytest.raises(QdmrError, match=r"a\.tif: colour mode F is not supported.*shard 0, row 0"):
        pack(tmp_path, str(tmp_path / "out"), settings=PackSettings(target_images="photos"))


def test_wrong_folders_are_refused_before_anything_is_written(realab: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(realab, source)
    (source / "Syn/gt/3.png").unlink()
    with pytest.raises(QdmrError, match="names do not match"):
        pack(source, str(tmp_path / "out"), settings=SMALL_SHARDS)
    with pytest.raises(QdmrError, match="nowhere: no such folder"):
        pack(tmp_path / "nowhere", str(tmp_path / "out"), settings=SMALL_SHARDS)
    assert not (tmp_path / "out").exists()


def test_folders_may_be_named_one_by_one(realab: Path, tmp_path: Path) -> None:
    settings = PackSettings(
        target_images="Real-Sim/L/train", test_images=str(realab / "Real-Sim/L/val")
    )
    manifest = pack(realab, str(tmp_path / "out"), settings=settings)
    counts = {name: entry.images for name, entry in manifest.sets.items()}
    assert counts == {"source": 5, "target": 3, "test": 2}
    assert RecordReader(str(tmp_path / "out")).read("test", 0).ground_truth is None


def test_half_named_folders_are_refused() -> None:
    with pytest.raises(SettingsError, match="source_ground_truth"):
        PackSettings(source_images="a")
    with pytest.raises(SettingsError, match="test_images"):
        PackSettings(test_ground_truth="a")


def flip_a_pixel(file: Path) -> None:
    data = bytearray(file.read_bytes())
    offset = entry_of(file.parent, "source", 1).ground_truth_offset
    assert offset >= 0
    data[offset + 5] ^= 1
    file.write_bytes(data)


def entry_of(folder: Path, name: str, record: int) -> RecordEntry:
    manifest = read(folder)
    return set_index(open_location(folder), manifest.set(name))[record]


def flip_the_footer(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "row", "message"),
    [
        (flip_a_pixel, 1, r"row 1 \(Syn/L/train/1\.png\) has a wrong checksum"),
        (flip_the_footer, None, r"wrong checksum, outside the pixels"),
        (truncate, None, r"bytes instead of"),
        (Path.unlink, None, r"no such file"),
    ],
)
def test_verify_names_every_bad_record(
    packed: Path, damage: Callable[[Path], None], row: int | None, message: str
) -> None:
    assert verify(str(packed)) == ()
    bad = shard(packed, "source-000000")
    half = shard(packed, "target-000000")
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    damage(bad)
    problems = verify(str(packed))
    assert [(problem.shard, problem.row) for problem in problems] == [
        (bad.name, row),
        (half.name, None),
        (half.name, 1),
    ]
    assert bad.name in problems[0].text
    assert re.search(message, problems[0].text)
    assert "row 1 (Real-Sim/L/train/1.png) is cut off" in problems[2].text


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_an_incomplete_dataset_is_refused_without_reading_it(
    packed: Path, damage: Callable[[Path], None]
) -> None:
    location, manifest = open_location(packed), read(packed)
    check_complete(location, manifest, ("source", "target"))
    for name in ("target-000001", "target-000000"):
        damage(shard(packed, name))
    check_complete(location, manifest, ("source",))
    what = r"(is missing|has \d+ bytes, not \d+)"
    with pytest.raises(QdmrError, match=rf"target-000000.*{what}.*\(and 1 more files\)"):
        check_complete(location, manifest, ("source", "target"))


def test_a_flipped_byte_is_found_when_its_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        write_png(tmp_path / f"photos/{i}.png", noise(i, 200, 100))
    pack(tmp_path, str(tmp_path / "out"), settings=PackSettings(target_images="photos"))
    file = shard(tmp_path / "out", "target")
    data = bytearray(file.read_bytes())
    data[entry_of(tmp_path / "out", "target", 1).image_offset + 150 * 3 * 100] ^= 64
    file.write_bytes(data)
    reader = RecordReader(str(tmp_path / "out"))
    reader.read("target", 0)
    reader.crop("target", 1, top=10, left=0, size=100)
    with pytest.raises(QdmrError, match=rf"{file.name}: wrong checksum.*\(row 1, photos/1\.png\)"):
        reader.crop("target", 1, top=100, left=0, size=100)


@pytest.mark.parametrize(("damage", "what"), [(truncate, "instead of"), (Path.unlink, "missing")])
def test_reading_a_broken_shard_names_shard_and_row(
    packed: Path, damage: Callable[[Path], None], what: str
) -> None:
    bad = shard(packed, "source-000001")
    damage(bad)
    reader = RecordReader(str(packed))
    reader.read("source", 1)
    with pytest.raises(QdmrError, match=rf"{bad.name}: .*{what}.*\(row 1, .*/3\.png\)"):
        reader.read("source", 3)


def edit(manifest: Path, change: Callable[[dict], None]) -> None:
    data = json.loads(manifest.read_text())
    change(data)
    manifest.write_text(json.dumps(data))


def test_broken_manifests_are_refused(packed: Path, tmp_path: Path) -> None:
    file = packed / "manifest.json"
    good = file.read_text()
    edit(file, lambda data: data.update(schema_version=99))
    with pytest.raises(QdmrError, match=r"schema_version 99, but this program reads 2 and 3;"):
        read(packed)
    file.write_text(good)
    edit(file, lambda data: data["sets"]["source"]["shards"].pop())
    with pytest.raises(QdmrError, match=r"manifest\.json: damaged manifest"):
        read(packed)
    for text in (good[:-50], "[]", '{"schema_version": 2}'):
        file.write_text(text)
        with pytest.raises(QdmrError, match=r"damaged manifest"):
            read(packed)
    with pytest.raises(QdmrError, match=r"no packed dataset \(manifest.json is missing\)"):
        read(tmp_path)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="data")
        yield "s3://data"
    server.stop()


def test_a_store_holds_the_same_bytes(realab: Path, packed: Path, bucket: str) -> None:
    uri = f"{bucket}/packed"
    manifest = pack(realab, uri, settings=SMALL_SHARDS)
    assert {file.name: file.read_bytes() for file in open_location(uri).list()} == content(packed)
    assert verify(uri) == ()
    check_complete(open_location(uri), manifest, ("source", "target", "test"))
    reader = RecordReader(uri)
    np.testing.assert_array_equal(
        reader.read("target", 0).image, read_image(realab / "Real-Sim/L/train/0.png")
    )
    open_location(uri).delete()
    with pytest.raises(QdmrError, match=r"s3://data/packed/target-000000.*row 0"):
        reader.read("target", 0)


def test_photographs_in_a_store_give_the_same_bytes(
    realab: Path, packed: Path, tmp_path: Path, bucket: str
) -> None:
    source = any_path(f"{bucket}/photographs")
    for file in realab.rglob("*.png"):
        place = location_of(source).join(file.relative_to(realab).as_posix())
        place.write_bytes_atomic(file.read_bytes())
    pack(source, str(tmp_path / "out"), settings=SMALL_SHARDS)
    assert content(tmp_path / "out") == content(packed)
    # The photographs of the lens may lie elsewhere than the simulated pairs.
    mixed = replace(SMALL_SHARDS, target_images=f"{source}/Real-Sim/L/train")
    sets = pack(realab, str(tmp_path / "mixed"), settings=mixed).sets
    assert sets["target"].content == read(packed).sets["target"].content
    for missing in ("nowhere", "photographs/Syn"):
        with pytest.raises(QdmrError, match=f"{missing}.*: no such folder") as caught:
            pack(any_path(f"{bucket}/{missing}"), str(tmp_path / "no"), settings=SMALL_SHARDS)
        assert "\n" not in str(caught.value)


def test_a_node_keeps_copies_of_shards_that_lie_in_a_store(
    realab: Path, bucket: str, tmp_path: Path
) -> None:
    uri, folder = f"{bucket}/cached", tmp_path / "cache"
    manifest = pack(realab, uri, settings=SMALL_SHARDS)
    shards = manifest.set("source").shards
    room = shards[0].bytes + shards[1].bytes + 10
    folder.mkdir()
    for file in ("older.parquet", ".tmp-older.parquet.lock"):
        (folder / file).write_bytes(b"x" * 100)
    reader = RecordReader(uri, cache_bytes=room, cache_folder=folder)
    expected = [reader.read("source", i).image for i in range(5)]
    wanted = {shards[0].file, shards[1].file}
    wait_for(lambda: {path.name for path in folder.glob("*.parquet")} == wanted)
    for file in open_location(uri).list():
        if file.name.startswith("source-"):
            file.delete()
    again = RecordReader(uri, cache_bytes=room, cache_folder=folder)
    for i in range(4):
        np.testing.assert_array_equal(again.read("source", i).image, expected[i])
    with pytest.raises(QdmrError, match=f"{shards[2].file}"):
        again.read("source", 4)
    # The index was copied, too: the store's is no longer needed.
    assert (folder / manifest.set("source").index.file).exists()
    # Copies of another length are not used; the store no longer has these.
    (folder / shards[0].file).write_bytes(b"half")
    with pytest.raises(QdmrError, match=f"{shards[0].file}"):
        RecordReader(uri, cache_bytes=room, cache_folder=folder).read("source", 0)
    # One that may not fill the cache uses what is there, and asks for nothing.
    (folder / shards[1].file).unlink()
    passive = RecordReader(uri, cache_bytes=room, cache_folder=folder, fill_cache=False)
    np.testing.assert_array_equal(passive.index("source").heights, [20, 20, 20, 20, 24])
    with pytest.raises(QdmrError, match=f"{shards[1].file}"):
        passive.read("source", 2)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_photographs_of_the_lens_may_lie_beside_simulated_pairs(
    realab: Path, tmp_path: Path
) -> None:
    """Pairs that `data simulate` made, and the user's own photographs in another folder."""
    shutil.copytree(realab / "Syn", tmp_path / "mine" / "Syn")
    own = tmp_path / "photographs"
    own.mkdir()
    write_png(own / "a.png", noise(5))
    settings = PackSettings(target_images=str(own))
    manifest = pack(tmp_path / "mine", str(tmp_path / "packed"), settings=settings)
    assert {name: entry.images for name, entry in manifest.sets.items()} == {
        "source": 5,
        "target": 1,
    }
    assert manifest.lens == "L"
    image = RecordReader(str(tmp_path / "packed")).read("target", 0).image
    assert np.array_equal(image, noise(5))


def test_simulated_pairs_without_photographs_of_the_lens_are_refused(
    realab: Path, tmp_path: Path
) -> None:
    shutil.copytree(realab / "Syn", tmp_path / "mine" / "Syn")
    with pytest.raises(QdmrError, match="no target photographs of lens L"):
        pack(tmp_path / "mine", str(tmp_path / "packed"), settings=PackSettings())
    assert not (tmp_path / "packed").exists()


def test_the_command_takes_the_address_of_a_store(
    realab: Path,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.chdir(tmp_path)
    uri = f"{bucket}/by-command"
    for command in (
        ["pack", str(realab), "--out", uri, "--endpoint", endpoint],
        ["inspect", uri, "--verify", "--endpoint", endpoint],
    ):
        monkeypatch.setattr(sys, "argv", ["qdmr", "data", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    assert "every record agrees" in capsys.readouterr().out
    assert Image.open(tmp_path / "by-command-sheet.png").width > 500
