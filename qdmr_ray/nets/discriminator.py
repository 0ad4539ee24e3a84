"""U-Net discriminator with spectral norm (Schoenfeld et al., CVPR 2020; Real-ESRGAN's form)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdmr_ray.nets.blocks import at_least_float32
from qdmr_ray.nets.settings import DiscriminatorSettings

LEAK = 0.2
# Guards the division when a vector is normalised (PyTorch's spectral_norm has the same).
NORM_EPS = 1e-12


class SpectralConv2d(nn.Module):
    """Bias-free convolution whose weight is divided by its largest singular value.

    The value is estimated by one power iteration per training-mode pass (Miyato et al., 2018).
    A batch may carry several ``passes``: equal, consecutive parts that are treated as if each had
    been a forward of its own, every part with the estimate after one more iteration. Dividing the
    output instead of the weight gives the same numbers, since the convolution is linear.
    """

    u: Tensor
    v: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # what nn.Conv2d does
        self.register_buffer("u", nn.functional.normalize(torch.randn(outputs), dim=0))
        rest = self.weight[0].numel()
        self.register_buffer("v", nn.functional.normalize(torch.randn(rest), dim=0))

    def forward(self, x: Tensor, passes: int = 1) -> Tensor:
        matrix = self.weight.flatten(1)
        sigmas = torch.stack([self._largest_singular_value(matrix) for _ in range(passes)])
        if passes == 1:
            weight = self.weight / sigmas
            return nn.functional.conv2d(x, weight, stride=self.stride, padding=1)
        out = nn.functional.conv2d(x, self.weight, stride=self.stride, padding=1)
        each = out.unflatten(0, (passes, -1)) / sigmas.view(-1, 1, 1, 1, 1).to(out.dtype)
        return each.flatten(0, 1)

    def _largest_singular_value(self, matrix: Tensor) -> Tensor:
        """Scalar estimate; in training mode the singular vectors advance by one iteration."""
        with torch.autocast(matrix.device.type, enabled=False):
            if self.training:
                with torch.no_grad():
                    v = nn.functional.normalize(matrix.T @ self.u, dim=0, eps=NORM_EPS)
                    u = nn.functional.normalize(matrix @ v, dim=0, eps=NORM_EPS)
                    self.v.copy_(v)
                    self.u.copy_(u)
            else:
                u, v = self.u, self.v
            return u @ (matrix @ v)


class UNetDiscriminator(nn.Module):
    """Images or features (B, C, H, W) to per-pixel logits (B, 1, H, W); H, W multiples of 8.

    ``passes`` is the number of equal parts of the batch that count as forwards of their own.
    The logits are float32 (or float64) under autocast, too.
    """

    def __init__(self, inputs: int, settings: DiscriminatorSettings) -> None:
        super().__init__()
        w = settings.width
        self.conv0 = nn.Conv2d(inputs, w, 3, padding=1)
        self.conv1 = SpectralConv2d(w, 2 * w, 4, stride=2)
        self.conv2 = SpectralConv2d(2 * w, 4 * w, 4, stride=2)
        self.conv3 = SpectralConv2d(4 * w, 8 * w, 4, stride=2)
        self.conv4 = SpectralConv2d(8 * w, 4 * w, 3)
        self.conv5 = SpectralConv2d(4 * w, 2 * w, 3)
        self.conv6 = SpectralConv2d(2 * w, w, 3)
        self.conv7 = SpectralConv2d(w, w, 3)
        self.conv8 = SpectralConv2d(w, w, 3)
        self.conv9 = nn.Conv2d(w, 1, 3, padding=1)

    def forward(self, x: Tensor, passes: int = 1) -> Tensor:
        levels = [_leaky(self.conv0(x))]
        for down in (self.conv1, self.conv2, self.conv3):
            levels.append(_leaky(down(levels[-1], passes)))
        h = levels.pop()
        for up in (self.conv4, self.conv5, self.conv6):
            h = nn.functional.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
            h = _leaky(up(h, passes)) + levels.pop()
        h = _leaky(self.conv7(h, passes))
        h = _leaky(self.conv8(h, passes))
        return at_least_float32(self.conv9(h))


def _leaky(x: Tensor) -> Tensor:
    return nn.functional.leaky_relu(x, LEAK)
