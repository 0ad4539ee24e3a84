"""Which node keeps a copy of which shard."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from qdmr_ray.data.format.manifest import ShardEntry
from qdmr_ray.data.format.placement import NOBODY, Placement

SIZE = 100
NAMES = tuple(f"10.0.0.{number}" for number in range(1, 9))
PLENTY = 10**9


def shards(count: int, size: int = SIZE) -> list[ShardEntry]:
    def entry(number: int) -> ShardEntry:
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        return ShardEntry(file=f"{number}.parquet", bytes=size, sha256=digest, rows=1)

    return [entry(number) for number in range(count)]


def named(placement: Placement, keepers: np.ndarray) -> list[set[str]]:
    """The names of each shard's keepers."""
    return [{placement.names[i] for i in row if i != NOBODY} for row in keepers.tolist()]


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_every_shard_has_its_copies_and_every_node_its_share(copies: int) -> None:
    placement = Placement(NAMES, copies)
    keepers = placement.keepers(shards(4000), PLENTY)
    assert all(len(names) == copies for names in named(placement, keepers))
    share = 4000 * copies / len(NAMES)
    counts = np.bincount(keepers.reshape(-1), minlength=len(NAMES))
    # Five standard deviations of a fair draw.
    assert np.abs(counts - share).max() < 5 * share**0.5


@pytest.mark.parametrize("copies", [1, 2])
def test_a_node_that_leaves_or_joins_moves_only_its_own_copies(copies: int) -> None:
    whole = Placement(NAMES, copies)
    less = Placement((*NAMES[:3], *NAMES[4:]), copies)
    before, after = (named(p, p.keepers(shards(4000), PLENTY)) for p in (whole, less))
    moved = 0
    for old, new in zip(before, after, strict=True):
        moved += len(new - old)
        assert old - new <= {NAMES[3]}
        assert len(new - old) == len(old - new)
    share = 4000 * copies / len(NAMES)
    assert abs(moved - share) < 5 * share**0.5


def test_the_order_of_the_names_changes_nothing() -> None:
    placements = (Placement(NAMES, 2), Placement(NAMES[::-1], 2))
    first, second = (named(p, p.keepers(shards(100), PLENTY)) for p in placements)
    assert first == second


@pytest.mark.parametrize("room", [0, SIZE - 1, SIZE, 7 * SIZE, 40 * SIZE])
def test_no_node_keeps_more_than_it_has_room_for(room: int) -> None:
    placement = Placement(NAMES[:4], 3)
    keepers = placement.keepers(shards(40), room)
    counts = np.bincount(keepers[keepers != NOBODY], minlength=4)
    assert (counts * SIZE <= room).all()
    # What room there is, is used, as far as there are copies to make.
    assert counts.sum() == min(4 * (room // SIZE), 3 * 40)


def test_first_copies_come_before_second_ones() -> None:
    placement = Placement(NAMES[:4], 2)
    keepers = placement.keepers(shards(40), 12 * SIZE)
    assert (keepers[:, 0] != NOBODY).all()
    assert (keepers[:, 1] != NOBODY).sum() == 8
    assert (keepers[:, 0] != keepers[:, 1]).all()


def test_fewer_nodes_than_copies_keep_everything() -> None:
    keepers = Placement(NAMES[:2], 3).keepers(shards(10), PLENTY)
    assert {tuple(sorted(row)) for row in keepers.tolist()} == {(0, 1)}


def test_a_node_reads_what_it_keeps_and_asks_the_keepers_for_the_rest() -> None:
    placement = Placement(NAMES, 2, here=NAMES[5])
    keepers = np.array([[5, 1], [1, 5], [2, 3], [2, 3], [4, NOBODY], [4, NOBODY], [NOBODY, NOBODY]])
    assert placement.keeps(keepers).tolist() == [True, True, *[False] * 5]
    asked = placement.ask(keepers, np.arange(10, 17))
    assert asked.tolist() == [NOBODY, NOBODY, 2, 3, 4, 4, NOBODY]
    # One that isn't among the nodes keeps nothing and asks for all.
    elsewhere = replace(placement, here="10.0.9.9")
    assert elsewhere.ask(keepers, np.arange(10, 17)).tolist() == [5, 5, 2, 3, 4, 4, NOBODY]
    assert not elsewhere.keeps(keepers).any()


def test_all_nodes_together_keep_all_copies() -> None:
    placement = Placement(NAMES, 2)
    keepers = placement.keepers(shards(50), PLENTY)
    kept = [replace(placement, here=name).keeps(keepers) for name in NAMES]
    np.testing.assert_array_equal(np.sum(kept, axis=0), 2)
