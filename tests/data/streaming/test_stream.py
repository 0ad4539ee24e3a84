"""The streams are exact: same numbers with and without Ray, resumed, and split over workers."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_ray import local_ray

from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.plan import CropPlan
from qdmr_ray.data.streaming.stream import (
    Batch,
    CropStream,
    DataSettings,
    InProcessStream,
    required_cpus,
)
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.photographs.decode import read_image, write_png

HEIGHT, WIDTH, CROP = 40, 56, 16
SOURCES, TARGETS = 7, 5
BOTH = ("source", "target")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of noise: every crop of them is told apart from every other."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, count in {"aberrated": SOURCES, "clean": SOURCES, "real": TARGETS}.items():
        (root / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            write_png(root / name / f"{i}.png", pixels)
    return root


PACKING = PackSettings(
    source_images="aberrated",
    source_ground_truth="clean",
    target_images="real",
    shard_records=3,
)


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("packed"))
    pack(folder, out, settings=PACKING)
    return out


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


def settings(path: str, **changes: Any) -> DataSettings:
    """Small blocks and segments, so that every seam is met."""
    values: dict[str, Any] = {"batches_per_block": 3, "object_store_bytes": room_for(13), **changes}
    return DataSettings(path=path, **values)


def room_for(iterations: int) -> int:
    """Bytes of two segments of so many iterations with the ``arguments`` below."""
    return 2 * iterations * 2 * 3 * 3 * CROP * CROP


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        "batch_size": 2,
        "crop": CROP,
        "same_place": False,
        "sets": BOTH,
        "seed": 11,
        "start_iteration": 0,
        "end_iteration": 20,
        **changes,
    }


def batches(kind: type, data: DataSettings, **changes: Any) -> list[Batch]:
    stream = kind(data, **arguments(**changes))
    try:
        return list(stream)
    finally:
        stream.close()


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert type(a[key]) is type(b[key])
            np.testing.assert_array_equal(np.asarray(a[key]), np.asarray(b[key]))


def joined(parts: list[list[Batch]]) -> list[Batch]:
    """The batches of several workers, put together as one worker's larger ones."""
    return [
        {
            key: torch.cat([batch[key] for batch in together])
            if isinstance(together[0][key], torch.Tensor)
            else np.concatenate([batch[key] for batch in together])
            for key in together[0]
        }
        for together in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("same_place", [False, True])
@pytest.mark.parametrize("crop", [CROP, 15])
def test_every_sample_is_the_planned_place_of_the_planned_record(
    folder: Path, packed: str, crop: int, same_place: bool
) -> None:
    """Also with a width that is no multiple of eight, which takes another way to be mirrored."""
    counts = {"source": SOURCES, "target": TARGETS}
    sizes = {name: (np.full(n, HEIGHT), np.full(n, WIDTH)) for name, n in counts.items()}
    plan = CropPlan(sizes, crop=crop, same_place=same_place, seed=11)
    where = {"source": "aberrated", "ground_truth": "clean", "target": "real"}
    found = batches(InProcessStream, settings(packed), crop=crop, same_place=same_place)
    assert [batch["positions"].tolist() for batch in found] == [
        [2 * i, 2 * i + 1] for i in range(20)
    ]
    for batch in found:
        planned = plan.at(batch["positions"])
        np.testing.assert_array_equal(batch["source_index"], planned["source"].index)
        np.testing.assert_array_equal(batch["target_index"], planned["target"].index)
        for field, name in where.items():
            crops = planned["target" if field == "target" else "source"]
            assert batch[field].dtype == torch.uint8
            assert batch[field].shape == (2, 3, crop, crop)
            for i in range(2):
                image = read_image(folder / name / f"{crops.index[i]}.png")
                top, left = crops.top[i], crops.left[i]
                square = image[top : top + crop, left : left + crop]
                square = square[:, ::-1] if crops.flip_horizontal[i] else square
                square = square[::-1] if crops.flip_vertical[i] else square
                square = square.transpose(1, 0, 2) if crops.transpose[i] else square
                np.testing.assert_array_equal(batch[field][i].permute(1, 2, 0), square)


def test_no_sample_is_lost_or_repeated_within_an_epoch(packed: str) -> None:
    found = batches(InProcessStream, settings(packed), batch_size=1, end_iteration=SOURCES * 5)
    source = np.array([batch["source_index"][0] for batch in found]).reshape(5, SOURCES)
    target = np.array([batch["target_index"][0] for batch in found]).reshape(SOURCES, TARGETS)
    assert (np.sort(source) == np.arange(SOURCES)).all()
    assert (np.sort(target) == np.arange(TARGETS)).all()


def test_resuming_gives_the_samples_that_were_to_come(packed: str) -> None:
    whole = batches(InProcessStream, settings(packed))
    assert_same(batches(InProcessStream, settings(packed), start_iteration=9), whole[9:])


def test_two_workers_share_the_order_of_one(packed: str) -> None:
    one = batches(InProcessStream, settings(packed), batch_size=4)
    two = [batches(InProcessStream, settings(packed), first=2 * rank, total=4) for rank in (0, 1)]
    assert_same(joined(two), one)


def test_packing_again_meanwhile_is_noticed(folder: Path, tmp_path: Path) -> None:
    pack(folder, str(tmp_path), settings=PACKING)
    stream = InProcessStream(settings(str(tmp_path)), **arguments(sets=("target",)))
    pack(folder, str(tmp_path), settings=PackSettings(target_images="clean"))
    with pytest.raises(QdmrError, match="was packed again while it was being read"):
        next(iter(stream))


def test_only_the_images_that_are_wanted_come(packed: str) -> None:
    whole = batches(InProcessStream, settings(packed), end_iteration=1)[0]
    source = batches(InProcessStream, settings(packed), end_iteration=1, sets=("source",))[0]
    assert source.keys() == {
        *("positions", "source_index", "source_place", "source_skipped"),
        *("source", "ground_truth"),
    }
    fields = ("source", "target")
    without = batches(InProcessStream, settings(packed), end_iteration=1, fields=fields)[0]
    assert without.keys() == whole.keys() - {"ground_truth"}
    assert torch.equal(without["target"], whole["target"])
    assert torch.equal(source["source"], whole["source"])
    with pytest.raises(ValueError, match="target"):
        InProcessStream(settings(packed), **arguments(sets=("source",), fields=("target",)))


@pytest.mark.parametrize("kind", [InProcessStream, CropStream])
def test_what_cannot_be_streamed_is_refused_when_the_stream_is_built(
    kind: type, packed: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        QdmrError, match=r"source image aberrated/0\.png is 56 x 40 .* crop of 64; lower"
    ):
        kind(settings(packed), **arguments(crop=64))
    with pytest.raises(SettingsError, match="path of the packed dataset is not set"):
        kind(settings(""), **arguments())
    with pytest.raises(QdmrError, match=r"manifest\.json is missing"):
        kind(settings(str(tmp_path / "nothing")), **arguments())
    pack(folder, str(tmp_path / "no source"), settings=PackSettings(target_images="real"))
    with pytest.raises(QdmrError, match="no source set"):
        kind(settings(str(tmp_path / "no source")), **arguments())


def test_the_loading_tasks_need_their_cpus() -> None:
    data = DataSettings(path="x", loader_workers=3, loader_cpus=0.5)
    assert required_cpus(data, 4) == 6.0


@pytest.mark.ray
@pytest.mark.parametrize("same_place", [False, True])
def test_ray_gives_the_same_numbers(cluster: None, packed: str, same_place: bool) -> None:
    data = settings(packed)
    found = batches(CropStream, data, same_place=same_place)
    assert_same(found, batches(InProcessStream, data, same_place=same_place))
    found[0]["source"].zero_()  # The training worker owns its batches.


@pytest.mark.ray
@pytest.mark.parametrize(
    ("per_block", "segment"), [(1, 1), (4, 17), (5, 20), (50, 3)], ids=lambda n: str(n)
)
def test_blocks_and_segments_change_nothing(
    cluster: None, packed: str, per_block: int, segment: int
) -> None:
    data = settings(packed, batches_per_block=per_block, object_store_bytes=room_for(segment))
    found = batches(CropStream, data, start_iteration=3, end_iteration=14)
    expected = batches(InProcessStream, data, start_iteration=3, end_iteration=14)
    assert_same(found, expected)


@pytest.mark.ray
def test_two_ray_workers_resumed_share_the_order_of_one(cluster: None, packed: str) -> None:
    data = settings(packed, loader_workers=1)
    one = batches(InProcessStream, data, batch_size=4)
    two = [batches(CropStream, data, first=2 * rank, total=4, start_iteration=6) for rank in (0, 1)]
    assert_same(joined(two), one[6:])


@pytest.mark.ray
def test_closing_early_ends_tasks_and_threads(cluster: None, packed: str) -> None:
    def segments() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("segment-")]

    stream = CropStream(settings(packed), **arguments(end_iteration=100_000))
    received = iter(stream)
    for _ in range(5):
        next(received)
    assert segments()
    stream.close()
    assert segments() == []
    never_read = CropStream(settings(packed), **arguments())
    never_read.close()
    assert segments() == []
    assert list(CropStream(settings(packed), **arguments(start_iteration=20))) == []


@pytest.mark.ray
def test_a_broken_shard_stops_the_stream_with_its_name(
    cluster: None, folder: Path, tmp_path: Path
) -> None:
    pack(folder, str(tmp_path), settings=PACKING)
    bad = next(tmp_path.glob("target-000001*"))
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(QdmrError, match=rf"{bad.name}: has .* bytes instead of .*row") as caught:
        batches(CropStream, settings(str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_packing_on_ray_gives_the_same_bytes(
    cluster: None, folder: Path, packed: str, tmp_path: Path
) -> None:
    done: list[int] = []
    pack(folder, str(tmp_path), settings=PACKING, progress=lambda n, _: done.append(n))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in Path(packed).iterdir()
    }
    assert done[-1] == 2 * (SOURCES + TARGETS)


@pytest.mark.ray
def test_a_failure_in_a_packing_task_is_one_line(cluster: None, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        write_png(photos / f"{i}.png", np.arange(3072, dtype=np.uint8).reshape(32, 32, 3))
    # Whole by its checksums, but with too few pixels: only decoding shows it.
    data = (photos / "2.png").read_bytes()
    at = data.index(b"IDAT")
    body = b"IDAT" + zlib.compress(b"\0" * 10)
    length = len(body) - 4
    chunk = length.to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    (photos / "2.png").write_bytes(data[: at - 4] + chunk + data[-12:])
    out = tmp_path / "out"
    with pytest.raises(QdmrError, match=r"2\.png: unreadable image") as caught:
        pack(tmp_path, str(out), settings=PackSettings(target_images="photos", shard_records=1))
    assert "\n" not in str(caught.value)
    assert not (out / "manifest.json").exists()
