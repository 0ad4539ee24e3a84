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
from data_executions import executions, wait_until
from fed import fed_streams, received
from local_ray import local_ray

from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.crops import Cutter
from qdmr_ray.data.streaming.plan import CropPlan
from qdmr_ray.data.streaming.stream import (
    Batch,
    DataSettings,
    FedStream,
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
    """Small blocks, and not many ahead, so that loading waits for the training."""
    values: dict[str, Any] = {"batches_per_block": 3, "object_store_bytes": room_for(26), **changes}
    return DataSettings(path=path, **values)


def room_for(iterations: int) -> int:
    """Bytes of the crops of so many iterations with the ``arguments`` below."""
    return iterations * 2 * 3 * 3 * CROP * CROP


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


def test_what_cannot_be_streamed_is_refused_when_the_stream_is_built(
    packed: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        QdmrError, match=r"source image aberrated/0\.png is 56 x 40 .* crop of 64; lower"
    ):
        InProcessStream(settings(packed), **arguments(crop=64))
    with pytest.raises(SettingsError, match="path of the packed dataset is not set"):
        InProcessStream(settings(""), **arguments())
    with pytest.raises(QdmrError, match=r"manifest\.json is missing"):
        InProcessStream(settings(str(tmp_path / "nothing")), **arguments())
    pack(folder, str(tmp_path / "no source"), settings=PackSettings(target_images="real"))
    with pytest.raises(QdmrError, match="no source set"):
        InProcessStream(settings(str(tmp_path / "no source")), **arguments())


def test_a_feed_needs_the_cpus_of_one_loading_task() -> None:
    assert required_cpus(DataSettings(path="x", loader_workers=3, loader_cpus=0.75)) == 0.75


def fed(data: DataSettings, *, workers: int = 1, **changes: Any) -> list[list[Batch]]:
    """Each worker's batches; ``changes`` are of the ``arguments`` of all workers together."""
    return received(fed_streams(data, workers=workers, **arguments(**changes)))


@pytest.mark.ray
@pytest.mark.parametrize("same_place", [False, True])
def test_ray_gives_the_same_numbers(cluster: None, packed: str, same_place: bool) -> None:
    data = settings(packed)
    (found,) = fed(data, same_place=same_place, end_iteration=200)
    expected = batches(InProcessStream, data, same_place=same_place, end_iteration=200)
    assert_same(found, expected)
    found[-1]["source"].zero_()  # The training worker owns its batches.


@pytest.mark.ray
@pytest.mark.parametrize(
    ("per_block", "room", "workers"),
    [(1, 2, 1), (4, 34, 2), (5, 40, 3), (50, 6, 6)],
    ids=lambda n: str(n),
)
def test_neither_blocks_nor_workers_change_a_sample(
    cluster: None, packed: str, per_block: int, room: int, workers: int
) -> None:
    """Every worker receives its own share of the one global order, resumed anywhere."""
    data = settings(packed, batches_per_block=per_block, object_store_bytes=3 * room_for(room))
    wanted = {"batch_size": 6, "start_iteration": 3, "end_iteration": 154}
    found = fed(data, workers=workers, **wanted)
    assert_same(joined(found), batches(InProcessStream, data, **wanted))


@pytest.mark.ray
def test_closing_early_ends_threads_and_executions(cluster: None, packed: str) -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "blocks"]

    wait_until(lambda: not executions())
    (stream,) = fed_streams(settings(packed), **arguments(end_iteration=100_000))
    batches = iter(stream)
    for _ in range(500):
        next(batches)
    assert threads()
    assert len(executions()) == 1
    stream.close()
    (never_read,) = fed_streams(settings(packed), **arguments())
    never_read.close()
    del stream, batches, never_read
    wait_until(lambda: not threads() and not executions())


class Blocks:
    """A shard out of a list."""

    def __init__(self, *blocks: dict[str, np.ndarray]) -> None:
        self.blocks = blocks

    def iter_batches(self, **_: Any) -> Iterator[dict[str, np.ndarray]]:
        yield from ({name: c[None] for name, c in block.items()} for block in self.blocks)


def block(packed: str, begin: int, end: int, **changes: Any) -> dict[str, np.ndarray]:
    stream = InProcessStream(settings(packed), **arguments(**changes))
    return Cutter(stream.request).cut(stream.portion.positions(begin, end))


def from_blocks(packed: str, *blocks: dict[str, np.ndarray], **changes: Any) -> list[Batch]:
    shard = Blocks(*blocks)
    return list(FedStream(settings(packed), connect=lambda _: shard, **arguments(**changes)))


def test_what_was_cut_while_loading_started_comes_only_once(packed: str) -> None:
    """Blocks from before the training's position are passed over; a first one may lie ahead."""
    expected = batches(InProcessStream, settings(packed), start_iteration=7)
    for firsts in ((0, 5, 10, 15), (7, 20), (12, 13, 20), (2, 9, 20)):
        ends = (*firsts[1:], 20)
        blocks = [block(packed, *span) for span in zip(firsts, ends, strict=True) if span[0] < 20]
        assert_same(from_blocks(packed, *blocks, start_iteration=7), expected)


def test_a_block_that_is_not_due_is_refused(packed: str) -> None:
    whole = [block(packed, first, first + 5) for first in (0, 5, 10, 15)]
    theirs = block(packed, 5, 10, first=2, total=4)
    for wrong in (
        [whole[0], whole[2], whole[3]],
        [whole[0], theirs],
        [whole[0], block(packed, 5, 10, batch_size=1, total=2)],
    ):
        with pytest.raises(QdmrError, match=r"delivered the samples at \[.*next ones are at"):
            from_blocks(packed, *wrong)
    with pytest.raises(QdmrError, match="ended before the last block"):
        from_blocks(packed, *whole[:3])


@pytest.mark.ray
def test_a_broken_shard_stops_the_stream_with_its_name(
    cluster: None, folder: Path, tmp_path: Path
) -> None:
    pack(folder, str(tmp_path), settings=PACKING)
    bad = next(tmp_path.glob("target-000001*"))
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(QdmrError, match=rf"{bad.name}: has .* bytes instead of .*row") as caught:
        fed(settings(str(tmp_path)), end_iteration=200)
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


@pytest.mark.ray
def test_many_workers_and_a_small_store_go_on(packed: str) -> None:
    """Each worker holds a block while it waits for the next, more in all than Ray Data would give
    one operator of this store. It comes last, as it leaves another Ray than the tests above use."""
    workers, count = 12, 10
    samples = arguments(batch_size=workers * count, crop=HEIGHT, end_iteration=200)
    with local_ray(object_store=110_000_000):
        data = DataSettings(path=packed, loader_workers=1, object_store_bytes=9_000_000)
        found = received(fed_streams(data, workers=workers, **samples))
    assert [len(batches) for batches in found] == [200] * workers
