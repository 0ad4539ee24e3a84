"""What ranks tell each other, between two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from qdmr_ray.train import preemption
from qdmr_ray.train.preemption import AGREE_ITERATIONS, Notice
from qdmr_ray.train.ranks import Ranks

WORLD = 2


def exchange(rank: int, file: str, out: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD
    )
    ranks = Ranks(rank, WORLD)
    told: list[object] = [
        ranks.gathered({"rank": rank}),
        ranks.of_the_first(f"of {rank}"),
        ranks.smallest(torch.tensor([rank, 5 - rank])).tolist(),
        ranks.any_of(rank == 0, rank == 1, False),
    ]
    ranks.wait_for_all()
    # Rank 1 alone is asked to stop: both stop, after the same iteration.
    notice = Notice(ranks, lambda: False, lambda: rank == 1)
    told.append(next(i for i in range(1, 100) if notice.given(i)))
    torch.save(told, f"{out}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_hear_the_same(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "meeting"), str(tmp_path))
    torch.multiprocessing.spawn(exchange, arguments, nprocs=WORLD)
    expected = [
        [{"rank": 0}, {"rank": 1}],
        "of 0",
        [0, 4],
        [True, True, False],
        AGREE_ITERATIONS,
    ]
    for rank in range(WORLD):
        assert torch.load(tmp_path / str(rank)) == expected


def test_a_single_rank_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    assert ranks.gathered(3) == [3]
    assert ranks.of_the_first("own") == "own"
    values: Tensor = ranks.smallest(torch.tensor([3, 4]))
    assert values.tolist() == [3, 4]
    assert ranks.any_of(True, False) == [True, False]
    ranks.wait_for_all()


def test_ray_is_asked_now_and_then_and_at_once_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    asked: list[int] = []

    def is_leaving() -> bool:
        asked.append(1)
        return len(asked) == 3

    notice = Notice(Ranks(), is_leaving, lambda: False)
    assert not notice.given(1)
    assert asked == []
    now[0] += preemption.ASK_RAY.seconds
    assert not notice.given(2)
    assert not notice.given(3)
    assert len(asked) == 1
    notice.hurry()
    assert not notice.given(4)
    assert notice.given(5)
