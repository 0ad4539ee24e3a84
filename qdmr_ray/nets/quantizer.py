"""Vector quantizer: the codebook that mixes both domains."""

import torch
from torch import Tensor, nn

from qdmr_ray.nets.blocks import at_least_float32, exporting, without_autocast

# Rows compared with the codebook at once, which bounds the distance matrix of whole photographs.
ROWS_AT_ONCE = 32768


class VectorQuantizer(nn.Module):
    """Chooses the nearest code by squared L2 distance, with a straight-through gradient (van den
    Oord et al., 2017).

    ``quantized, indices, loss = quantizer(z)`` with ``z`` (B, D, h, w): ``quantized`` has the shape
    of ``z``, ``indices`` is int64 (B, h, w), and ``loss`` (B,) is each image's mean over all
    elements of ``(z_q - sg z)^2 + beta (sg z_q - z)^2``. Images of several domains may thus share a
    batch and still have a loss for each domain.
    """

    def __init__(self, codebook_size: int, code_dim: int, commitment: float) -> None:
        super().__init__()
        self.commitment = commitment
        self.codes = nn.Parameter(torch.empty(codebook_size, code_dim))
        nn.init.uniform_(self.codes, -1 / codebook_size, 1 / codebook_size)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = at_least_float32(z)
        indices = self.choose(z)
        codes = self.lookup(indices)
        codebook = (codes - z.detach()).square().flatten(1).mean(1)
        commitment = (codes.detach() - z).square().flatten(1).mean(1)
        return _through(z, codes), indices, codebook + self.commitment * commitment

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what ``forward`` does, to the bit, without the loss and what it takes."""
        z = at_least_float32(z)
        indices = self.choose(z)
        return _through(z, self.lookup(indices)), indices

    def choose(self, z: Tensor) -> Tensor:
        """Returns the indices (B, h, w) of the codes nearest to ``z`` (B, D, h, w)."""
        rows = at_least_float32(z).detach().movedim(1, -1)
        return self.nearest(rows.flatten(0, -2)).view(rows.shape[:-1])

    def guidance(self, z: Tensor, wanted: Tensor) -> Tensor:
        """Returns each image's distance (B,) of ``z`` (B, D, h, w) to the codes at ``wanted``
        (B, h, w): ``beta mean((sg z* - z)^2) + mean((G(z) - G(sg z*))^2)`` with ``z*`` those codes
        and the Gram matrix ``G(x) = x^T x / (h w)`` over an image's positions, (D, D) (Chen et al.,
        FeMaSR, 2022, where ``z*`` are codes of the ground truth)."""
        z, codes = at_least_float32(z), self.lookup(wanted).detach()
        # Autocast would compute the Gram matrices in bfloat16.
        with without_autocast(z.device):
            distance = (codes - z).square().flatten(1).mean(1)
            texture = (_gram(z) - _gram(codes)).square().flatten(1).mean(1)
        return self.commitment * distance + texture

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Returns the index (N,) of the code nearest to each row of (N, D).

        The distance omits ``|z|^2``, which is the same for every code.
        """
        # Autocast would round the distances to bfloat16 and pick other codes.
        with without_autocast(rows.device):
            codes = self.codes.to(torch.promote_types(self.codes.dtype, torch.float32))
            half_norms = codes.square().sum(1) / 2
            rows = rows.to(codes.dtype)
            # A graph must have the same number of chunks for every size.
            chunks = [rows] if exporting() else rows.split(ROWS_AT_ONCE)
            return torch.cat([(half_norms - chunk @ codes.T).argmin(1) for chunk in chunks])

    def lookup(self, indices: Tensor) -> Tensor:
        """Returns the codes (B, D, h, w) at ``indices`` (B, h, w)."""
        return nn.functional.embedding(indices, self.codes).movedim(-1, 1)


def _through(z: Tensor, codes: Tensor) -> Tensor:
    """Returns ``codes`` with the gradient of ``z``, the straight-through estimate."""
    return z + (codes - z).detach()


def _gram(x: Tensor) -> Tensor:
    """Returns the Gram matrices (B, D, D) of maps (B, D, h, w), as means over the positions."""
    rows = x.flatten(2)
    return rows @ rows.mT / rows.shape[2]
