"""How much of the codebook is in use."""

from __future__ import annotations

import torch
from torch import Tensor

from qdmr_ray.stages.objective import Losses


@torch.no_grad()
def codebook_usage(domain: str, indices: Tensor, codebook_size: int) -> Losses:
    """Perplexity of the codes in use and the share of codes used, over one worker's batch.

    Perplexity is ``exp(entropy)`` of the code frequencies: 1 for one code, K when all are used
    alike (van den Oord et al., 2017).
    """
    chosen = indices.flatten()
    # bincount would wait for the GPU, to learn how many bins it needs.
    counts = chosen.new_zeros(codebook_size).scatter_add_(0, chosen, torch.ones_like(chosen))
    frequencies = counts.float() / indices.numel()
    entropy = -torch.xlogy(frequencies, frequencies).sum()
    return {
        f"codebook/{domain}/perplexity": entropy.exp(),
        f"codebook/{domain}/used": (counts > 0).float().mean(),
    }
