"""Packing is lossless and repeatable; reading and verifying name what is broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from qdmr_ray.data.images import read_image, write_png
from qdmr_ray.data.manifest import Manifest
from qdmr_ray.data.pack import PackSettings, inspect, pack, verify
from qdmr_ray.data.records import RecordReader
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.storage import open_location

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
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
        reader.planes("target", 0, ground_truth=True)
    with pytest.raises(QdmrError, match="no validation set; it has: source, target, test"):
        reader.count("validation")


def test_any_parquet_reader_sees_the_records(realab: Path, packed: Path) -> None:
    table = pq.read_table(shard(packed, "source-00000"))
    row = table.slice(1, 1).to_pylist()[0]
    pixels = np.frombuffer(row["image"], dtype=np.uint8).reshape(3, row["height"], row["width"])
    np.testing.assert_array_equal(
        pixels.transpose(1, 2, 0), read_image(realab / "Syn/L/train/1.png")
    )
    assert (row["set"], row["name"], row["origin"]) == ("source", "1", "1.png")


def test_the_manifest_says_what_there_is(packed: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    source = manifest["sets"]["source"]
    assert manifest["lens"] == "L"
    assert manifest["schema_version"] == 1
    assert source["images"] == 5
    assert source["paired"] is True
    assert source["sizes"] == [
        {"height": 20, "width": 30, "images": 4},
        {"height": 24, "width": 40, "images": 1},
    ]
    assert [entry["rows"] for entry in source["shards"]] == [2, 2, 1]
    assert source["shards"][1]["bytes"] == (packed / source["shards"][1]["file"]).stat().st_size
    assert source["shards"][0]["records"][1]["origin"] == "1.png"
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
    assert whole.digest == inspect(str(packed)).digest
    shutil.copytree(realab, tmp_path / "changed")
    write_png(tmp_path / "changed/Syn/gt/0.png", noise(12345))
    changed = pack(tmp_path / "changed", str(tmp_path / "other"), settings=PackSettings())
    assert changed.digest != whole.digest


def test_shards_are_bounded_in_bytes(realab: Path, tmp_path: Path) -> None:
    pair_bytes = 2 * 3 * 20 * 30
    settings = PackSettings(shard_bytes=2 * pair_bytes)
    manifest = pack(realab, str(tmp_path / "out"), settings=settings)
    assert [len(part.records) for part in manifest.set("source").shards] == [2, 2, 1]
    tiny = pack(realab, str(tmp_path / "tiny"), settings=PackSettings(shard_bytes=1))
    assert len(tiny.set("source").shards) == 5


def test_inspect_counts(packed: Path) -> None:
    summary = inspect(str(packed))
    source = summary.sets[0]
    assert [entry.name for entry in summary.sets] == ["source", "target", "test"]
    assert (source.images, source.paired, source.shards) == (5, True, 3)
    assert source.sizes == [(20, 30, 4), (24, 40, 1)]
    assert source.bytes == sum(path.stat().st_size for path in packed.glob("source-*"))


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
    shards = {entry.file for part in read(packed).sets.values() for entry in part.shards}
    assert set(content(packed)) == shards | {"manifest.json", "notes.txt"}
    assert verify(str(packed)) == ()


def read(folder: Path) -> Manifest:
    return RecordReader(str(folder)).manifest


@pytest.mark.parametrize("before", [True, False])
def test_a_failed_packing_leaves_what_was_there(realab: Path, tmp_path: Path, before: bool) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(realab, source)
    if before:
        pack(source, str(out), settings=SMALL_SHARDS)
    old = content(out) if before else {}
    write_png(source / "Syn/gt/0.png", noise(4321))
    # Broken in a way that only decoding shows: half of a JPEG.
    last = source / "Real-Sim/L/val/1.png"
    last.unlink()
    Image.fromarray(noise(1)).save(last.with_suffix(".jpg"))
    data = last.with_suffix(".jpg").read_bytes()
    last.with_suffix(".jpg").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(QdmrError, match=r"val/1\.jpg: unreadable image"):
        pack(source, str(out), settings=SMALL_SHARDS)
    assert out.exists() == before
    assert (content(out) if before else {}) == old


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
    record = next(
        record
        for part in read(file.parent).set("source").shards
        if part.file == file.name
        for record in part.records[1:]
    )
    data[record.ground_truth_offset + 5] ^= 1
    file.write_bytes(data)


def flip_the_footer(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_pixel, r"wrong checksum, row 1 \(1\.png\)"),
        (flip_the_footer, r"wrong checksum, outside the pixels"),
        (truncate, r"bytes instead of"),
        (Path.unlink, r"no such file"),
    ],
)
def test_verify_names_every_bad_shard(
    packed: Path, damage: Callable[[Path], None], message: str
) -> None:
    assert verify(str(packed)) == ()
    bad = shard(packed, "source-00000")
    truncate(shard(packed, "target-00001"))
    damage(bad)
    problems = verify(str(packed))
    assert [Path(line.split(": ")[0]).name[:12] for line in problems] == [
        "source-00000",
        "target-00001",
    ]
    assert bad.name in problems[0]
    assert re.search(message, problems[0])


@pytest.mark.parametrize(("damage", "what"), [(truncate, "instead of"), (Path.unlink, "missing")])
def test_reading_a_broken_shard_names_shard_and_row(
    packed: Path, damage: Callable[[Path], None], what: str
) -> None:
    bad = shard(packed, "source-00001")
    damage(bad)
    reader = RecordReader(str(packed))
    reader.read("source", 1)
    with pytest.raises(QdmrError, match=rf"{bad.name}: .*{what}.*\(row 1, 3\.png\)"):
        reader.read("source", 3)


def edit(manifest: Path, change: Callable[[dict], None]) -> None:
    data = json.loads(manifest.read_text())
    change(data)
    manifest.write_text(json.dumps(data))


def test_broken_manifests_are_refused(packed: Path, tmp_path: Path) -> None:
    file = packed / "manifest.json"
    good = file.read_text()
    edit(file, lambda data: data.update(schema_version=99))
    with pytest.raises(QdmrError, match=r"schema_version 99, but this program reads 1"):
        inspect(str(packed))
    file.write_text(good)
    edit(file, lambda data: data["sets"]["source"]["shards"].pop())
    with pytest.raises(QdmrError, match=r"manifest\.json: damaged manifest"):
        inspect(str(packed))
    for text in (good[:-50], "[]", '{"schema_version": 1}'):
        file.write_text(text)
        with pytest.raises(QdmrError, match=r"damaged manifest"):
            inspect(str(packed))
    with pytest.raises(QdmrError, match=r"no packed dataset \(manifest.json is missing\)"):
        inspect(str(tmp_path))


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


def test_a_store_holds_the_same_bytes_and_reads_through_a_bounded_cache(
    realab: Path, packed: Path, bucket: str
) -> None:
    uri = f"{bucket}/packed"
    pack(realab, uri, settings=SMALL_SHARDS)
    assert {file.name: file.read_bytes() for file in open_location(uri).list()} == content(packed)
    assert verify(uri) == ()

    one_photograph = 3 * 20 * 30
    reader = RecordReader(uri, cache_bytes=one_photograph)
    np.testing.assert_array_equal(
        reader.read("target", 0).image, read_image(realab / "Real-Sim/L/train/0.png")
    )
    for file in open_location(uri).list():
        file.delete()
    reader.read("target", 0)  # Still cached.
    with pytest.raises(QdmrError, match=r"s3://data/packed/target-00000.*row 1"):
        reader.read("target", 1)


def test_a_cache_of_nothing_fetches_every_time(realab: Path, bucket: str) -> None:
    uri = f"{bucket}/uncached"
    pack(realab, uri, settings=SMALL_SHARDS)
    reader = RecordReader(uri, cache_bytes=0)
    reader.read("target", 0)
    open_location(uri).delete()
    with pytest.raises(QdmrError, match="target-00000"):
        reader.read("target", 0)


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
