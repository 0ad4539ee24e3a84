"""LPIPS, the learned perceptual distance, as training loss and as metric, in float32 or float64.

    distance = build_lpips("vgg", backbone_weights=None)
    loss = distance(restored, ground_truth).mean()

The heads are those inside the installed ``lpips`` package (version 0.1). That package's own module
would return the same distances, but it downloads a missing backbone, and computes and
differentiates the features of both images each time.
Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets.blocks import at_least_float32, without_autocast
from qdmr_ray.nets.weights import (
    BACKBONES,
    Backbone,
    find_backbone_weights,
    load_backbone,
    load_weight_file,
)

# ImageNet's mean and deviation for images in [-1, 1], constants of the trained heads.
INPUT_SHIFT = (-0.030, -0.088, -0.188)
INPUT_SCALE = (0.458, 0.448, 0.450)
# Keeps a pixel whose features are all zero from a division by zero; part of the trained metric.
NORM_EPSILON = 1e-10


class LPIPSFeatures(nn.Module):
    """Maps RGB images (B, 3, H, W) in [0, 1] to unit-length features (B, C, H', W') of five layers
    of the backbone. Raises QdmrError for an image smaller than the backbone can see."""

    shift: Tensor
    scale: Tensor

    def __init__(self, layers: nn.Sequential, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = layers[: backbone.taps[-1] + 1]
        self.register_buffer("shift", torch.tensor(INPUT_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(INPUT_SCALE).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        if min(x.shape[-2:]) < self.backbone.smallest:
            raise QdmrError(
                f"LPIPS needs images of at least {self.backbone.smallest} pixels a side with "
                f"{self.backbone.model}; these are {x.shape[-1]}x{x.shape[-2]}"
            )
        hidden = ((2.0 * x - 1.0) - self.shift) / self.scale
        taken = []
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if index in self.backbone.taps:
                tapped = at_least_float32(hidden)
                norm = torch.linalg.vector_norm(tapped, dim=1, keepdim=True)
                taken.append(tapped / (norm + NORM_EPSILON))
        return taken


class LPIPSDistance(nn.Module):
    """Maps two results of :class:`LPIPSFeatures` to LPIPS ``(B,)``; 0 for identical images."""

    def __init__(self, heads: Sequence[Tensor]) -> None:
        super().__init__()
        for index, head in enumerate(heads):
            self.register_buffer(f"head{index}", head.detach().clone())

    def forward(self, features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> Tensor:
        total = features_a[0].new_zeros(features_a[0].shape[0])
        # Under autocast the weighted sum over channels would be rounded.
        with without_autocast(total.device):
            for index, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
                weighted = nn.functional.conv2d((a - b).square(), self.get_buffer(f"head{index}"))
                total = total + weighted.mean(dim=(1, 2, 3))
        return total


class LPIPS(nn.Module):
    """LPIPS of each pair of images of two batches; its own weights never train.

    ``forward`` sends gradients to its first argument only. To compare one target with several
    images, keep ``features(target)`` and call ``distance(features(x), kept)`` for each.
    """

    def __init__(self, layers: nn.Sequential, heads: Sequence[Tensor], backbone: Backbone) -> None:
        super().__init__()
        self.features = LPIPSFeatures(layers, backbone)
        self.distance = LPIPSDistance(heads)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Returns LPIPS ``(B,)`` of two ``(B, 3, H, W)`` RGB batches in [0, 1], not clamped."""
        with torch.no_grad():
            target_features = self.features(target)
        distance: Tensor = self.distance(self.features(x), target_features)
        return distance


def build_lpips(net: str, backbone_weights: Path | str | None = None) -> LPIPS:
    """Returns LPIPS with the backbone ``"vgg"`` (training loss) or ``"alex"`` (reporting).

    The network is in float32. Nothing is ever downloaded. Raises QdmrError where the backbone's
    weights are missing, unreadable or another network's.
    """
    find_backbone_weights(net, backbone_weights)
    # Imported here: torchvision takes seconds to import, and most runs of small presets need none.
    import torchvision

    # On "meta" the classifier's 120 million weights are neither allocated nor initialised.
    with torch.device("meta"):
        layers = getattr(torchvision.models, BACKBONES[net].model)(weights=None).features
    load_backbone(net, backbone_weights, layers, "features.")
    return LPIPS(layers, _load_heads(net), BACKBONES[net])


def _load_heads(net: str) -> list[Tensor]:
    """Reads the five trained 1x1 convolutions ``(1, C, 1, 1)`` without importing ``lpips``."""
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        raise QdmrError("LPIPS needs the Python package lpips, which holds its heads: install it")
    path = Path(spec.origin).parent / "weights" / "v0.1" / f"{net}.pth"
    state = load_weight_file(path, "install the package lpips again")
    return [state[f"lin{index}.model.1.weight"] for index in range(len(BACKBONES[net].taps))]
