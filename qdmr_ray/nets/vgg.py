"""Frozen VGG19 up to ``relu4_4``, whose features the VQGAN's semantic term predicts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Channels of the convolutions up to conv4_4; "pool" halves the map.
LAYERS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512, 512, 512, 512)
DOWNSAMPLING = 8


def vgg_layers(plan: Sequence[int | str]) -> nn.Sequential:
    """Returns a VGG's convolutions with their ReLUs, and its poolings, numbered as torchvision's
    ``features`` are; ``plan`` holds the channels, with "pool" between them."""
    layers: list[nn.Module] = []
    channels = 3
    for layer in plan:
        if isinstance(layer, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, layer, 3, padding=1), nn.ReLU(inplace=True)]
            channels = layer
    return nn.Sequential(*layers)


class VGG19Features(nn.Module):
    """Maps images (B, 3, H, W) in [0, 1] to ``relu4_4`` features (B, 512, H / 8, W / 8); has
    torchvision's keys (``features.0.weight``, …) and never trains."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = vgg_layers(LAYERS)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.features((x - self.mean) / self.std)
