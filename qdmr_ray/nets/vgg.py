"""Frozen VGG19 up to ``relu4_4``, whose features the VQGAN's semantic term predicts."""

from pathlib import Path

import torch
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets.weights import first_line, load_weight_file

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Channels of the convolutions up to conv4_4; "pool" halves the map.
LAYERS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512, 512, 512, 512)
DOWNSAMPLING = 8
# The file that torchvision's vgg19(weights="IMAGENET1K_V1") downloads.
WEIGHTS_FILE = "vgg19-dcbb9e9d.pth"


class VGG19Features(nn.Module):
    """Maps images (B, 3, H, W) in [0, 1] to ``relu4_4`` features (B, 512, H / 8, W / 8); has
    torchvision's keys (``features.0.weight``, …) and never trains."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for layer in LAYERS:
            if isinstance(layer, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, layer, 3, padding=1), nn.ReLU(inplace=True)]
                channels = layer
        self.features = nn.Sequential(*layers)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.features((x - self.mean) / self.std)
        return features


def find_vgg19_weights(path: Path | None = None) -> Path:
    """Returns the weight file: ``path``, else the one in torch's hub cache. Downloads nothing;
    raises QdmrError, which tells how to get the file, where it is missing."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
    file = path or cached
    if file.is_file():
        return file
    raise QdmrError(
        f"the semantic term needs torchvision's ImageNet weights of VGG19, and there is no file "
        f'{file}: where there is a network, run python -c "import torchvision; '
        f"torchvision.models.vgg19(weights='IMAGENET1K_V1')\", which leaves {WEIGHTS_FILE} in "
        f"torch's cache; copy that file to {cached}, give its path in the setting weights.vgg19, "
        "or switch the term off with stages.vqgan.semantic=0"
    )


def load_vgg19(path: Path | None = None) -> VGG19Features:
    """Returns VGG19 with ImageNet weights from ``path`` or torch's hub cache; raises QdmrError
    where the file is missing or is not torchvision's VGG19."""
    file = find_vgg19_weights(path)
    remedy = "name another file in the setting weights.vgg19"
    state = load_weight_file(file, remedy)
    network = VGG19Features()
    try:
        network.load_state_dict({key: state[key] for key in network.state_dict()})
    except (RuntimeError, KeyError) as error:
        raise QdmrError(
            f"{file} does not hold torchvision's VGG19 weights ({first_line(error)}): {remedy}"
        ) from error
    return network
