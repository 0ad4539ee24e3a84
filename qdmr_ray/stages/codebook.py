"""Codebook usage: counts the codes that are chosen, and moves those that never are."""

from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor

from qdmr_ray.nets import VQGAN
from qdmr_ray.stages.objective import Losses


@torch.no_grad()
def codebook_usage(indices: Mapping[str, Tensor], codebook_size: int) -> Losses:
    """Returns the codes' perplexity and the share of codes used by domain, over one worker's batch.
    Perplexity is ``exp(entropy)`` of the code frequencies: 1 for one code, K when all are used
    alike (van den Oord et al., 2017)."""
    usage: Losses = {}
    for domain, chosen in indices.items():
        codes = chosen.flatten()
        # bincount would wait for the GPU to learn how many bins it needs.
        counts = codes.new_zeros(codebook_size).scatter_add_(0, codes, torch.ones_like(codes))
        frequencies = counts.float() / codes.numel()
        entropy = -torch.xlogy(frequencies, frequencies).sum()
        usage[f"codebook/{domain}/perplexity"] = entropy.exp()
        usage[f"codebook/{domain}/used"] = (counts > 0).float().mean()
    return usage


class CodeRevival:
    """Replaces dead codes, which no position has chosen for ``after`` iterations, by encoder
    outputs of the current batch.

    The paper has no revival; ``stages.vqgan.revive_after`` switches it on. The replacement is that
    of Dhariwal et al., "Jukebox" (2020), section B.3. Usage is summed over the ranks, so that every
    rank has the same counts, and rank 0 chooses the replacements.
    """

    def __init__(self, network: VQGAN, after: int) -> None:
        self._network = network
        self._after = after
        self.idle = torch.zeros(len(network.quantizer.codes), dtype=torch.int64)

    @torch.no_grad()
    def step(
        self, indices: Tensor, images: Tensor, iteration: int, optimizer: torch.optim.Optimizer
    ) -> Tensor:
        """Returns how many codes were replaced, a scalar; ``indices`` are the codes that this
        iteration's images (B, 3, H, W) chose."""
        codes = self._network.quantizer.codes
        used = torch.bincount(indices.flatten(), minlength=len(codes))
        if _distributed():
            torch.distributed.all_reduce(used)
        self.idle = torch.where(used > 0, 0, self.idle.to(used.device) + 1)
        dead = (self.idle >= self._after).nonzero().flatten()
        if len(dead):
            codes[dead] = self._rows(images, len(dead), iteration).to(codes.dtype)
            for moment in ("exp_avg", "exp_avg_sq"):
                # Adam's moments belong to the position that the code has left.
                optimizer.state[codes][moment][dead] = 0
            self.idle[dead] = 0
        return used.new_tensor(len(dead), dtype=torch.float32)

    def _rows(self, images: Tensor, count: int, iteration: int) -> Tensor:
        """Returns encoder outputs (count, D) of the batch, chosen by the iteration alone."""
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
