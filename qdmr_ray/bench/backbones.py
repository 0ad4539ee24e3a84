"""The frozen VGGs of LPIPS and of the semantic term with random weights: a step takes as long with
them as with the trained ones, which have to be downloaded."""

import torch

from qdmr_ray.nets.lpips import LPIPS
from qdmr_ray.nets.vgg import VGG19Features, vgg_layers
from qdmr_ray.nets.weights import BACKBONES
from qdmr_ray.stages import Components, StageSettings

# VGG16's convolutions; LPIPS compares what comes before each pooling, and the last.
VGG16_LAYERS = (
    *(64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool"),
    *(512, 512, 512, "pool", 512, 512, 512),
)


class RandomBackbones(Components):
    """Components whose VGGs are noise, and need neither files nor torchvision nor lpips."""

    def lpips(self, settings: StageSettings) -> LPIPS | None:
        if not settings.lpips:
            return None
        widths = [VGG16_LAYERS[i - 1] for i, x in enumerate(VGG16_LAYERS) if x == "pool"]
        heads = [torch.rand(1, int(width), 1, 1) for width in (*widths, VGG16_LAYERS[-1])]
        return LPIPS(vgg_layers(VGG16_LAYERS), heads, BACKBONES["vgg"])

    def vgg19(self) -> VGG19Features:
        return VGG19Features()
