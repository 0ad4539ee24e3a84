"""The restoration network of the Base, UDA and source-only stages."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from qdmr_ray.nets.blocks import Decoder, Encoder, FeatureFusion
from qdmr_ray.nets.quantizer import VectorQuantizer
from qdmr_ray.nets.registry import STREAMED, RestorationNetwork
from qdmr_ray.nets.settings import NetworkSettings
from qdmr_ray.nets.swin import SwinBottleneck
from qdmr_ray.nets.vqgan import VQGAN


class Encoded(NamedTuple):
    """Holds ``features`` (B, C, h, w) after the bottleneck, and the codebook's ``indices``
    (B, h, w) and ``codebook_loss`` (B,), which are None for the source-only network. The
    ``guidance_loss`` (B,) is None unless the codes to choose were given."""

    features: Tensor
    indices: Tensor | None
    codebook_loss: Tensor | None
    guidance_loss: Tensor | None = None


class QDMROutput(NamedTuple):
    """Holds ``image`` (B, 3, H, W), unclamped, and the entries of :class:`Encoded`."""

    image: Tensor
    features: Tensor
    indices: Tensor | None
    codebook_loss: Tensor | None
    guidance_loss: Tensor | None = None


class QDMR(RestorationNetwork):
    """Encoder, codebook fusion, Swin bottleneck and decoder for images (B, 3, H, W) in [0, 1] whose
    height and width are multiples of ``multiple``."""

    kind = "qdmr"
    settings_type = NetworkSettings
    restored = STREAMED
    settings: NetworkSettings
    # Whether the network has a codebook.
    domain_mixing: ClassVar[bool] = True

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__(settings)
        width, dim = settings.feature_width, settings.code_dim
        self.encoder = Encoder(settings.widths, settings.residual_blocks)
        if self.domain_mixing:
            self.before_quant = nn.Conv2d(width, dim, 1)
            self.quantizer = VectorQuantizer(settings.codebook_size, dim, settings.commitment)
            self.quantizer.requires_grad_(False)
            if settings.fusion:
                self.after_quant = nn.Conv2d(dim, width, 3, padding=1)
                self.fusion = FeatureFusion(width)
        self.bottleneck = SwinBottleneck(width, settings.swin)
        self.decoder = Decoder(settings.widths, settings.residual_blocks)
        if settings.global_residual:
            for parameter in self.decoder.last.parameters():
                nn.init.zeros_(parameter)

    @classmethod
    def supervised(cls) -> type[RestorationNetwork]:
        """Returns the network's class without the codebook."""
        return SourceOnlyQDMR

    def take_codebook(self, vqgan: VQGAN) -> None:
        """Copies the trained codebook (frozen here) and the layers around it (which train on)."""
        for name in ("quantizer", "before_quant", "after_quant"):
            # Without fusion the network has no layer after the codes.
            if hasattr(self, name):
                getattr(self, name).load_state_dict(getattr(vqgan, name).state_dict())

    def encode(self, x: Tensor, wanted: Tensor | None = None) -> Encoded:
        """Returns features after the bottleneck; images of several domains may share the batch.
        ``wanted``, int64 (B, h, w), are the codes that a VQGAN with the same codebook chooses; how
        far the features before the quantizer are from these is the ``guidance_loss``."""
        features = self.encoder(x)
        if not self.domain_mixing:
            return Encoded(self.bottleneck(features), None, None)
        z = self.before_quant(features)
        code, indices, loss = self.quantizer(z)
        guidance = None if wanted is None else self.quantizer.guidance(z, wanted)
        if self.settings.fusion:
            features = self.fusion(features, self.after_quant(code))
        return Encoded(self.bottleneck(features), indices, loss, guidance)

    def decode(self, features: Tensor, x: Tensor) -> Tensor:
        """Decodes ``features`` of the images ``x`` (B, 3, H, W) to restored images (B, 3, H, W)."""
        image: Tensor = self.decoder(features)
        return image + x if self.settings.global_residual else image

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> QDMROutput:
        encoded = self.encode(x, wanted)
        return QDMROutput(self.decode(encoded.features, x), *encoded)


class SourceOnlyQDMR(QDMR):
    """QDMR without the codebook and the fusion: the paper's source-only comparison."""

    kind = "source_only"
    domain_mixing = False
