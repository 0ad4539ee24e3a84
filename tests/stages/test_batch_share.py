"""Shares of a batch: every sample once, parts in step, weights that make a mean."""

from __future__ import annotations

import itertools

import pytest

from qdmr_ray.stages import share_of

CASES = [
    (total, part, world_size)
    for total, part, world_size in itertools.product(
        (1, 2, 3, 7, 8, 12), (1, 2, 3, 8), (1, 2, 3, 5)
    )
    if world_size <= total
]


@pytest.mark.parametrize(("total", "part", "world_size"), CASES)
def test_shares_cover_the_batch_and_stay_in_step(total: int, part: int, world_size: int) -> None:
    shares = [
        share_of(total, micro_batch=part, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    rows = [row for share in shares for row in range(share.first, share.first + share.count)]
    assert rows == list(range(total))
    assert len({len(share.micro_batches) for share in shares}) == 1
    for share in shares:
        assert sum(share.micro_batches) == share.count
        assert max(share.micro_batches) <= part
        assert share.micro_batches[0] > 0
    # Gradients are averaged over the workers: each sample counts for 1 / total.
    for share in shares:
        for size, weight in zip(share.micro_batches, share.weights, strict=True):
            assert weight / world_size == pytest.approx(size / total, rel=1e-12)


def test_a_worker_that_has_its_full_batch_takes_it_in_one_piece() -> None:
    share = share_of(8, micro_batch=4, rank=1, world_size=2)
    assert (share.first, share.count, share.micro_batches, share.weights) == (4, 4, (4,), (1.0,))


def test_more_workers_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="rank 0 of 3, batch 2"):
        share_of(2, micro_batch=1, world_size=3)
