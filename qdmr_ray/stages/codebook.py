"""Revival of dead codes: one that no position has chosen for long moves to where features are.

The paper has none; it is switched on by ``stages.vqgan.revive_after``. The replacement is an
encoder output of the current batch, as in Dhariwal et al., "Jukebox" (2020), section B.3.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor

from qdmr_ray.nets import VQGAN


class CodeRevival:
    """Counts how long each code has been idle, and replaces those that reach ``after``.

    The same on every rank: usage is summed over the ranks, and rank 0 chooses.
    """

    def __init__(self, network: VQGAN, after: int) -> None:
        self._network = network
        self._after = after
        self.idle = torch.zeros(len(network.quantizer.codes), dtype=torch.int64)

    @torch.no_grad()
    def step(
        self,
        indices: Tensor,
        images: Tensor,
        iteration: int,
        optimizer: torch.optim.Optimizer,
    ) -> Tensor:
        """How many codes were replaced, a scalar; ``indices`` are those that ``images`` chose."""
        codes = self._network.quantizer.codes
        used = torch.bincount(indices.flatten(), minlength=len(codes))
        if _distributed():
            torch.distributed.all_reduce(used)
        self.idle = torch.where(used > 0, 0, self.idle.to(used.device) + 1)
        dead = (self.idle >= self._after).nonzero().flatten()
        if len(dead):
            codes[dead] = self._rows(images, len(dead), iteration).to(codes.dtype)
            for moment in ("exp_avg", "exp_avg_sq"):
                # What Adam remembers is about the place that the code has left.
                optimizer.state[codes][moment][dead] = 0
            self.idle[dead] = 0
        return used.new_tensor(len(dead), dtype=torch.float32)

    def _rows(self, images: Tensor, count: int, iteration: int) -> Tensor:
        """``count`` encoder outputs (count, D) of the batch, chosen by the iteration alone."""
        z = self._network.before_quant(self._network.encoder(images))
        rows = z.movedim(1, -1).flatten(0, -2).contiguous()
        generator = torch.Generator().manual_seed(iteration)
        chosen = torch.randint(len(rows), (count,), generator=generator).to(rows.device)
        picked = rows[chosen]
        if _distributed():
            torch.distributed.broadcast(picked, src=0)
        return picked


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
