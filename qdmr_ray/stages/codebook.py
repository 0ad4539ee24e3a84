"""Codebook usage: counts the codes that are chosen, moves them to what chose them, and moves those
that nothing chooses."""

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
        counts = _counts(chosen, codebook_size)
        frequencies = counts.float() / chosen.numel()
        entropy = -torch.xlogy(frequencies, frequencies).sum()
        usage[f"codebook/{domain}/perplexity"] = entropy.exp()
        usage[f"codebook/{domain}/used"] = (counts > 0).float().mean()
    return usage


class CodeAverages:
    """Keeps each code at a moving average of the encoder outputs that choose it, instead of
    training it by the codebook loss, in which it lags behind an encoder that moves.

    The paper has none; ``stages.vqgan.code_decay`` switches it on. After an iteration in which a
    code was chosen n times, by outputs that add up to s, its count N becomes ``d N + (1 - d) n``,
    its sum M becomes ``d M + (1 - d) s``, and the code is M / N (van den Oord et al., 2017,
    appendix A.1). A code that is chosen for the first time is s / n at once. Counts and sums are
    those of all ranks, so that every rank has the same codes.
    """

    def __init__(self, network: VQGAN, decay: float) -> None:
        self._codes, self._decay = network.quantizer.codes, decay
        self._codes.requires_grad_(False)
        self.counts = torch.zeros(len(self._codes))
        self.sums = torch.zeros(self._codes.shape)

    @torch.no_grad()
    def step(self, indices: Tensor, z: Tensor) -> None:
        """Moves the codes; ``indices`` (N,) are those that the encoder outputs ``z`` (N, D) of this
        iteration chose."""
        codes = self._codes
        # A product adds in the same order each time, which atomic additions on a GPU don't.
        choices = codes.new_zeros(len(indices), len(codes)).scatter_(1, indices[:, None], 1)
        counts, sums = choices.sum(0), choices.T @ z.to(codes.dtype)
        if _distributed():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        before = self.counts.to(counts)
        decay = torch.where(before > 0, self._decay, 0.0).to(counts)
        weight = torch.where(before > 0, 1 - self._decay, 1.0).to(counts)
        self.counts = decay * before + weight * counts
        self.sums = decay[:, None] * self.sums.to(sums) + weight[:, None] * sums
        # To write the chosen codes alone would wait for the GPU to learn how many these are.
        codes.copy_(torch.where(counts[:, None] > 0, self.sums / self.counts[:, None], codes))

    def forget(self, codes: Tensor) -> None:
        """Forgets what chose the ``codes``, indices (N,), as they were moved elsewhere."""
        if len(codes):
            self.counts[codes] = 0


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
        self.resume(torch.zeros(len(network.quantizer.codes), dtype=torch.int64))

    def resume(self, idle: Tensor) -> None:
        """Goes on from the iterations for which each code has been idle, int64 (K,)."""
        self.idle = idle
        # Iterations in which no code can die, as far as is known.
        self._safe = 0

    @torch.no_grad()
    def step(
        self, indices: Tensor, images: Tensor, iteration: int, optimizer: torch.optim.Optimizer
    ) -> Tensor:
        """Returns the codes that were replaced, indices (N,); ``indices`` are those that this
        iteration's images (B, 3, H, W) chose. It waits for the GPU only in iterations in which a
        code may have died."""
        codes = self._network.quantizer.codes
        used = _counts(indices, len(codes))
        if _distributed():
            torch.distributed.all_reduce(used)
        self.idle = torch.where(used > 0, 0, self.idle.to(used.device) + 1)
        if self._safe:
            self._safe -= 1
            return used[:0]
        dead = (self.idle >= self._after).nonzero().flatten()
        if len(dead):
            codes[dead] = self._rows(images, len(dead), iteration).to(codes.dtype)
            if codes.requires_grad:
                for moment in ("exp_avg", "exp_avg_sq"):
                    # Adam's moments belong to the position that the code has left.
                    optimizer.state[codes][moment][dead] = 0
            self.idle[dead] = 0
        self._safe = self._after - int(self.idle.max()) - 1
        return dead

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


def _counts(chosen: Tensor, codes: int) -> Tensor:
    """Returns how often each of so many codes is among the ``chosen`` indices, int64 (codes,)."""
    chosen = chosen.flatten()
    # bincount would wait for the GPU to learn how many bins it needs.
    return chosen.new_zeros(codes).scatter_add_(0, chosen, torch.ones_like(chosen))


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
