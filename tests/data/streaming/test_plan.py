"""The plan is a function of (seed, position): complete epochs, uniform crops, any worker count."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdmr_ray.data.streaming.plan import CropPlan, Crops, Portion, permute
from qdmr_ray.errors import QdmrError


def sizes(count: int, height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, height, np.int32), np.full(count, width, np.int32)


def plan(source: int = 7, target: int = 5, *, same_place: bool = False, seed: int = 1) -> CropPlan:
    return CropPlan(
        {"source": sizes(source), "target": sizes(target)},
        crop=16,
        same_place=same_place,
        seed=seed,
    )


def columns(crops: Crops) -> np.ndarray:
    return np.stack(
        [np.asarray(getattr(crops, field.name), np.int64) for field in dataclasses.fields(crops)]
    )


@given(count=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_meets_every_number_once(count: int, key: int) -> None:
    numbers = np.arange(count, dtype=np.uint64)
    keys = np.full(count, key, dtype=np.uint64)
    np.testing.assert_array_equal(np.sort(permute(numbers, count, keys)), numbers)


def test_a_permutation_of_ten_million_needs_only_what_is_asked_for() -> None:
    count = 10_000_000
    values = np.arange(0, count, 97, dtype=np.uint64)
    found = permute(values, count, np.full(values.size, 5, dtype=np.uint64))
    assert np.unique(found).size == values.size
    assert found.max() < count
    # Spread evenly: in ten bins, each within a few deviations of its share.
    share = np.histogram(found, bins=10, range=(0, count))[0] / values.size
    assert np.abs(share - 0.1).max() < 0.006


@pytest.mark.parametrize("name", ["source", "target"])
def test_every_epoch_holds_every_record_once_in_a_new_order(name: str) -> None:
    count = {"source": 7, "target": 5}[name]
    index = plan().at(np.arange(count * 40))[name].index.reshape(40, count)
    np.testing.assert_array_equal(np.sort(index, axis=1), np.tile(np.arange(count), (40, 1)))
    assert len({tuple(row) for row in index.tolist()}) > 30


@pytest.mark.parametrize("count", [2, 3])
def test_small_sets_come_in_all_orders_equally_often(count: int) -> None:
    epochs = 6000
    index = plan(source=count).at(np.arange(count * epochs))["source"].index.reshape(epochs, count)
    _, counts = np.unique(index, axis=0, return_counts=True)
    orders = {2: 2, 3: 6}[count]
    assert len(counts) == orders
    # Six deviations of a binomial share.
    assert np.abs(counts / epochs - 1 / orders).max() < 6 * np.sqrt(1 / orders / epochs)


def test_a_sample_does_not_depend_on_what_else_is_asked_for() -> None:
    positions = np.array([3, 10**9, 0, 12345678901, 3])
    together = plan().at(positions)
    for name in ("source", "target"):
        for i, position in enumerate(positions):
            alone = plan().at(np.array([position]))[name]
            np.testing.assert_array_equal(columns(alone)[:, 0], columns(together[name])[:, i])


def test_seeds_and_sets_have_streams_of_their_own() -> None:
    positions = np.arange(2000)
    first = plan(source=50, target=50).at(positions)
    other = plan(source=50, target=50, seed=2).at(positions)
    for a, b in ((first["source"], other["source"]), (first["source"], first["target"])):
        assert (a.index == b.index).mean() < 0.05
        assert (a.top == b.top).mean() < 0.08
        assert 0.4 < (a.flip_horizontal == b.flip_horizontal).mean() < 0.6


def test_crops_are_uniform_over_the_image() -> None:
    crops = plan().at(np.arange(50_000))["source"]
    for corner, room in ((crops.top, 40 - 16 + 1), (crops.left, 60 - 16 + 1)):
        counts = np.bincount(corner, minlength=room)
        assert counts.size == room
        expected = 50_000 / room
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert chi_squared < room - 1 + 6 * np.sqrt(2 * (room - 1))
    assert abs(np.corrcoef(crops.top, crops.left)[0, 1]) < 0.02


def test_each_augmentation_has_probability_one_half_and_is_independent() -> None:
    crops = plan().at(np.arange(40_000))["target"]
    kind = crops.flip_horizontal * 4 + crops.flip_vertical * 2 + crops.transpose * 1
    share = np.bincount(kind, minlength=8) / 40_000
    assert np.abs(share - 1 / 8).max() < 0.01


def test_same_place_shares_corner_and_augmentation() -> None:
    found = plan(same_place=True).at(np.arange(3000))
    source, target = columns(found["source"])[1:], columns(found["target"])[1:]
    np.testing.assert_array_equal(source, target)
    assert (plan().at(np.arange(3000))["source"].index == found["source"].index).all()


def test_same_place_is_relative_where_sizes_differ() -> None:
    small, large = sizes(3, 40, 60), sizes(3, 400, 600)
    both = CropPlan({"source": small, "target": large}, crop=16, same_place=True, seed=0)
    found = both.at(np.arange(5000))
    place = found["source"].top / (40 - 16 + 1), found["target"].top / (400 - 16 + 1)
    # One row of the small image is the grain.
    assert np.abs(place[0] - place[1]).max() <= 1 / (40 - 16 + 1)


def test_every_record_keeps_within_its_own_size() -> None:
    heights, widths = mixed = np.array([16, 64, 16]), np.array([100, 16, 16])
    crops = CropPlan({"source": mixed}, crop=16, same_place=False, seed=3).at(np.arange(600))
    source = crops["source"]
    assert (source.top + 16 <= heights[source.index]).all()
    assert (source.left + 16 <= widths[source.index]).all()
    assert source.top.max() > 40
    assert source.left.max() > 70


def test_a_crop_larger_than_an_image_is_refused_by_name() -> None:
    mixed = np.array([40, 12]), np.array([60, 60])
    with pytest.raises(QdmrError, match=r"source image b\.png is 60 x 12 .*crop of 16; lower the"):
        CropPlan(
            {"source": mixed},
            crop=16,
            same_place=False,
            seed=0,
            label=lambda name, index: f"{'ab'[index]}.png",
        )
    with pytest.raises(QdmrError, match="the target set is empty"):
        CropPlan({"target": sizes(0)}, crop=16, same_place=False, seed=0)


def test_a_record_may_stand_in_for_another_at_the_same_relative_place() -> None:
    crops = CropPlan(
        {"source": (np.array([40, 400]), np.array([60, 600]))}, crop=16, same_place=False, seed=5
    )
    for position in range(50):
        planned = crops.at(np.array([position]))["source"].rows()[0]
        assert crops.instead("source", position, planned.index) == planned
        other = crops.instead("source", position, 1 - planned.index)
        for name in ("flip_horizontal", "flip_vertical", "transpose"):
            assert getattr(other, name) == getattr(planned, name)
        rooms = {0: 40 - 15, 1: 400 - 15}
        relative = [crop.top / rooms[crop.index] for crop in (planned, other)]
        assert abs(relative[0] - relative[1]) <= 1 / 25


def test_negative_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        plan().at(np.array([-1]))


def test_workers_together_cover_the_global_order() -> None:
    one = Portion(0, 6, 6).positions(5, 9).reshape(4, 6)
    for world_size in (2, 3):
        count = 6 // world_size
        parts = [
            Portion(count * rank, count, 6).positions(5, 9).reshape(4, -1)
            for rank in range(world_size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), one)
    np.testing.assert_array_equal(one.reshape(-1), np.arange(30, 54))


def test_the_order_of_recorded_runs_stays_what_it_was() -> None:
    found = plan(same_place=False, seed=2024).at(np.arange(1000))
    text = np.concatenate([columns(found["source"]), columns(found["target"])]).astype("<i8")
    assert hashlib.sha256(text.tobytes()).hexdigest()[:16] == "5ada5a6a36937ec1"
