"""What stages of toy size are built from, without pytest: worker processes import it too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdmr_ray.nets import VQGAN, DiscriminatorSettings, NetworkSettings, SwinSettings
from qdmr_ray.nets.lpips import LPIPS
from qdmr_ray.nets.vqgan import VGG_WIDTH
from qdmr_ray.nets.weights import Backbone
from qdmr_ray.stages import (
    STAGES,
    BaseSettings,
    Components,
    ComputeSettings,
    SourceOnlySettings,
    Stage,
    StageSettings,
    UDASettings,
    VQGANSettings,
    build_stage,
)

SETTINGS: dict[str, StageSettings] = {
    "vqgan": VQGANSettings(),
    "source_only": SourceOnlySettings(),
    "base": BaseSettings(),
    "uda": UDASettings(),
}

# The stages at their defaults, and those that can be guided with that: name and changed settings.
PLAIN_AND_GUIDED: list[tuple[str, dict[str, float]]] = [
    *((name, {}) for name in SETTINGS),
    ("base", {"code_guidance": 1.0}),
    ("uda", {"code_guidance": 1.0}),
]

# One halving and windows of 4.
SMALL = NetworkSettings(
    widths=(8, 16),
    residual_blocks=1,
    codebook_size=16,
    code_dim=8,
    swin=SwinSettings(groups=1, blocks=2, heads=2, window=4, mlp_ratio=2.0),
)
# Three halvings: the semantic term needs features at 1/8.
DEEP = NetworkSettings(
    widths=(8, 8, 8, 16), residual_blocks=1, codebook_size=16, code_dim=8, swin=SMALL.swin
)
DISCRIMINATOR = DiscriminatorSettings(width=4)
# Features of SMALL are then 16 pixels a side, a multiple of the feature discriminator's 8.
CROP = 32


class TinyComponents(Components):
    """Components with toy stand-ins for the frozen VGGs, whose real weights can't be shipped.

    They have random weights that are the same in every process, and behave as the originals do:
    LPIPS is the package's own class on another backbone, VGG19 gives 512 channels at 1/8.
    """

    def lpips(self, settings: StageSettings) -> LPIPS | None:
        return tiny_lpips() if settings.lpips else None

    def vgg19(self) -> nn.Module:  # type: ignore[override]
        return TinyVGG19()


def tiny_lpips() -> LPIPS:
    """LPIPS on a backbone of two layers."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        )
        heads = [torch.rand(1, 4, 1, 1) for _ in range(2)]
    backbone = Backbone("toy", taps=(1, 3))
    return LPIPS(layers, heads, backbone)


class TinyVGG19(nn.Module):
    """Images (B, 3, H, W) to non-negative features (B, 512, H / 8, W / 8)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.conv = nn.Conv2d(3, VGG_WIDTH, 8, stride=8)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def network_of(stage: str) -> NetworkSettings:
    """The toy network that ``stage`` is tried on."""
    return DEEP if stage == "vqgan" else SMALL


def trained_vqgan(network: NetworkSettings = SMALL) -> VQGAN:
    """The VQGAN that Base and UDA start from: random weights, codes spread enough to be used."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vqgan = VQGAN(network)
        # Fresh codes lie within 1 / K, where every feature has one nearest code.
        nn.init.normal_(vqgan.quantizer.codes, std=0.5)
    return vqgan


def tiny_stage(
    name: str,
    settings: StageSettings,
    *,
    seed: int = 0,
    network: NetworkSettings | None = None,
    dtype: torch.dtype = torch.float32,
    compute: ComputeSettings | None = None,
    device: str = "cpu",
) -> Stage:
    """A stage of toy size; the same seed gives the same weights."""
    torch.manual_seed(seed)
    trained = {"vqgan": trained_vqgan()} if STAGES[name].needs else {}
    components = TinyComponents(
        network=network or network_of(name), discriminator=DISCRIMINATOR, trained=trained
    )
    return build_stage(name, settings, components).to(device, dtype, compute)


def batch_of(
    stage: str, count: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random images (count, 3, CROP, CROP) in [0, 1] under the names that ``stage`` reads."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand((count, 3, CROP, CROP), generator=generator).to(dtype)
        for name in STAGES[stage].domains
    }
