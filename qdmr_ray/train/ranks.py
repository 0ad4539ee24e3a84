"""The values that the ranks of a training exchange beside gradients, over the CPU."""

from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ReduceOp

T = TypeVar("T")


class Ranks:
    """The ranks that train together; a single one exchanges nothing. Every method is a collective
    call: all ranks call it, in the same order."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self._group: Any = torch.distributed.new_group(backend="gloo") if world_size > 1 else None

    def gathered(self, own: T) -> list[T]:
        """Returns the values of all ranks, in their order."""
        values = [own] * self.world_size
        if self._group is not None:
            torch.distributed.all_gather_object(values, own, group=self._group)
        return values

    def of_the_first(self, own: T) -> T:
        """Returns rank 0's value, on every rank."""
        values = [own]
        if self._group is not None:
            torch.distributed.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def wait_for_all(self) -> None:
        """Returns when every rank has called it."""
        if self._group is not None:
            torch.distributed.barrier(group=self._group)

    def smallest(self, values: Tensor) -> Tensor:
        """Returns the minimum over all ranks, for each element of a tensor on the CPU."""
        if self._group is not None:
            torch.distributed.all_reduce(values, ReduceOp.MIN, group=self._group)
        return values

    def any_of(self, *flags: bool) -> list[bool]:
        """Returns whether each flag is set on any rank."""
        unset = torch.tensor([not flag for flag in flags], dtype=torch.int32)
        return [value == 0 for value in self.smallest(unset).tolist()]
