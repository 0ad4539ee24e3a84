"""The workers' exchange: the same weights to start from, and one all-reduce of gradients for each
optimizer and step.

It does for a stage what DistributedDataParallel does, in operations that a CUDA graph can hold, and
leaves the pass through the networks alone: several micro-batches need no ``no_sync``, and a weight
that a pass doesn't use needs no search of the graph.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

# Bytes that a weight's gradient starts at a multiple of, as PyTorch's allocator would have it: the
# optimizer's kernel reads four numbers at once where it may.
_ALIGNMENT = 512


class GradientExchange:
    """Averages the gradients of ``weights``, all of one type, over the workers of the default
    process group.

    All gradients lie in one buffer, and from :meth:`start` on each weight's ``grad`` is its view of
    the buffer, with the weight's own memory order. Copying gradients there takes one pass over
    them; views that the backward pass adds to would have to be set to zero first and take two. With
    ``narrow`` the workers exchange a bfloat16 copy of the buffer, half the bytes.
    """

    def __init__(self, weights: Sequence[Tensor], *, narrow: bool = False) -> None:
        self._weights, self._narrow = weights, narrow
        unit = _ALIGNMENT // weights[0].element_size()
        sizes = [-(-weight.numel() // unit) * unit for weight in weights]
        self._flat = weights[0].new_zeros(sum(sizes))
        self._views = [
            piece.as_strided(weight.shape, weight.stride())
            for piece, weight in zip(self._flat.split(sizes), weights, strict=True)
        ]
        self._sent = self._flat
        self._work: Any = None

    def start(self) -> None:
        """Begins to exchange the gradients that the weights have now, beside what the caller does
        next; a collective call. A weight without a gradient counts as one whose gradient is 0, so
        that a worker that doesn't use it stays in step with one that does."""
        pairs = list(zip(self._views, self._weights, strict=True))
        arriving: list[tuple[Tensor, Tensor]] = []
        for view, weight in pairs:
            if weight.grad is None:
                view.zero_()
            else:
                arriving.append((view, weight.grad))
        torch._foreach_copy_([view for view, _ in arriving], [grad for _, grad in arriving])
        for view, weight in pairs:
            weight.grad = view
        self._sent = self._flat.bfloat16() if self._narrow else self._flat
        self._work = torch.distributed.all_reduce(self._sent, async_op=True)

    def finish(self) -> None:
        """Waits (on a GPU: lets the stream wait) until the gradients are the workers' mean."""
        self._work.wait()
        if self._narrow:
            self._flat.copy_(self._sent)
        # Divided here, so that the narrow sum alone is rounded.
        self._flat /= torch.distributed.get_world_size()


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Replaces ``tensors`` by those of rank 0, in one message for each of their types; a collective
    call."""
    by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_type[tensor.dtype].append(tensor)
    for alike in by_type.values():
        message = torch.cat([tensor.flatten() for tensor in alike])
        torch.distributed.broadcast(message, src=0)
        pieces = message.split([tensor.numel() for tensor in alike])
        for tensor, piece in zip(alike, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))
