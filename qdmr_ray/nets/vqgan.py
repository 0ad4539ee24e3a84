"""The VQGAN learns the domain-mixing codebook and turns source images into s2t images."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qdmr_ray.nets.blocks import Decoder, Encoder
from qdmr_ray.nets.quantizer import VectorQuantizer
from qdmr_ray.nets.settings import NetworkSettings

VGG_WIDTH = 512
# Side of the map that stands for one code in the codebook atlas.
ATLAS_SIDE = 2


class VQGANOutput(NamedTuple):
    """Holds ``image`` (B, 3, H, W), unclamped; the straight-through ``code`` (B, D, h, w);
    ``indices`` int64 (B, h, w); ``codebook_loss`` (B,); and ``z`` (B, D, h, w), which the codes
    were chosen for."""

    image: Tensor
    code: Tensor
    indices: Tensor
    codebook_loss: Tensor
    z: Tensor


class VQGAN(nn.Module):
    """Reconstructs images (B, 3, H, W) in [0, 1] by encoder, quantizer and decoder."""

    kind = "vqgan"
    settings_type = NetworkSettings

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.multiple = settings.downsampling
        width, dim = settings.feature_width, settings.code_dim
        self.encoder = Encoder(settings.widths, settings.residual_blocks)
        self.before_quant = nn.Conv2d(width, dim, 1)
        self.quantizer = VectorQuantizer(settings.codebook_size, dim, settings.commitment)
        self.after_quant = nn.Conv2d(dim, width, 3, padding=1)
        self.decoder = Decoder(settings.widths, settings.residual_blocks)

    def forward(self, x: Tensor) -> VQGANOutput:
        z = self.before_quant(self.encoder(x))
        code, indices, loss = self.quantizer(z)
        return VQGANOutput(self.decoder(self.after_quant(code)), code, indices, loss, z)

    @torch.no_grad()
    def encode_indices(self, x: Tensor) -> Tensor:
        """Returns the codes' indices, int64 (B, h, w), of images (B, 3, H, W) without decoding."""
        return self.quantizer.choose(self.before_quant(self.encoder(x)))

    @torch.no_grad()
    def translate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the ``image`` and ``indices`` of :class:`VQGANOutput`, without the codebook loss:
        a trained VQGAN makes s2t images (B, 3, H, W), unclamped, of source images."""
        code, indices = self.quantizer.quantize(self.before_quant(self.encoder(x)))
        return self.decoder(self.after_quant(code)), indices

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Decodes the codes at ``indices`` (B, h, w) to images (B, 3, H, W), unclamped."""
        return self.decoder(self.after_quant(self.quantizer.lookup(indices)))

    def decode_codes(self, codes: Tensor | None = None) -> Tensor:
        """Returns the codebook atlas: each code (by default all) decoded from a map of 2 x 2 to an
        unclamped image, (K, 3, 2 * downsampling, 2 * downsampling)."""
        if codes is None:
            codes = torch.arange(self.settings.codebook_size, device=self.quantizer.codes.device)
        side = ATLAS_SIDE
        return self.decode_indices(codes.view(-1, 1, 1).expand(-1, side, side))


class SemanticHead(nn.Module):
    """Predicts VGG19 ``relu4_4`` features (B, 512, h, w) from codes (B, D, h, w); training only."""

    def __init__(self, code_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(code_dim, VGG_WIDTH, 1)

    def forward(self, code: Tensor) -> Tensor:
        return nn.functional.relu(self.conv(code))
