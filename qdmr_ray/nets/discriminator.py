"""U-Net discriminator with spectral norm (Schoenfeld et al., CVPR 2020; Real-ESRGAN's form)."""

import torch
from torch import Tensor, nn

from qdmr_ray.nets.blocks import as_narrow_as_it_is, at_least_float32, without_autocast
from qdmr_ray.nets.fused import discriminator as fused_discriminator
from qdmr_ray.nets.fused import norm as fused_norm
from qdmr_ray.nets.settings import DiscriminatorSettings

LEAK = 0.2
# Guards the division that normalises a vector; PyTorch's spectral_norm has the same.
NORM_EPS = 1e-12
# Orders of a weight's dimensions (outputs, inputs, height, width) to channels-last and back.
AS_IT_IS, CHANNELS_LAST, CHANNELS_FIRST = (0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2)


class SpectralConv2d(nn.Module):
    """Bias-free convolution whose weight is divided by its largest singular value.

    One power iteration per training-mode pass estimates the value (Miyato et al., 2018). A batch
    may hold several ``passes``: equal, consecutive pieces, each treated as a forward of its own,
    with the estimate after one more iteration. Dividing the output instead of the weight has the
    same result, since the convolution is linear.
    """

    u: Tensor
    v: Tensor
    # Whether ``fused_discriminator`` does on a GPU what follows the convolution.
    fused = False

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # what nn.Conv2d does
        self.register_buffer("u", nn.functional.normalize(torch.randn(outputs), dim=0))
        rest = self.weight[0].numel()
        self.register_buffer("v", nn.functional.normalize(torch.randn(rest), dim=0))

    def forward(self, x: Tensor, passes: int = 1) -> Tensor:
        # The inverse is a factor: the gradient of a quotient reads and writes twice as much memory.
        scales = 1 / self._largest_singular_values(passes)
        if passes == 1:
            return self._convolve(x, self.weight * scales)
        each = self._convolve(x, self.weight).unflatten(0, (passes, -1))
        return (each * scales.view(-1, 1, 1, 1, 1).to(each.dtype)).flatten(0, 1)

    def leaky(self, x: Tensor, passes: int, added: Tensor | None = None) -> Tensor:
        """Returns ``leaky_relu(self(x, passes)) + added``."""
        if not (self.fused and fused_norm.fits(x)):
            out = nn.functional.leaky_relu(self(x, passes), LEAK)
            return out if added is None else out + added
        scales = 1 / self._largest_singular_values(passes)
        return fused_discriminator.scaled_leaky_relu(
            self._convolve(x, self.weight), scales, LEAK, added
        )

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.conv2d(x, weight, stride=self.stride, padding=1)

    def _largest_singular_values(self, passes: int) -> Tensor:
        """Returns estimates (passes,); training mode advances the singular vectors before each."""
        # The matrix's columns have the order that they have in memory, so nothing is copied.
        innermost = self.weight.is_contiguous(memory_format=torch.channels_last)
        order, inverse = (CHANNELS_LAST, CHANNELS_FIRST) if innermost else (AS_IT_IS, AS_IT_IS)
        with without_autocast(self.weight.device):
            weight = self.weight.permute(order)
            matrix, shape = weight.flatten(1), weight[:1].shape
            u, v = self.u, self.v.view_as(self.weight[:1]).permute(order).flatten()
            left, right = [], []
            for _ in range(passes):
                if self.training:
                    u, v = _iterate(matrix.detach(), u)
                left.append(u)
                right.append(v)
            # u^T W v of all passes takes one product with the weight, and one for its gradient.
            estimates = (torch.stack(left) @ matrix * torch.stack(right)).sum(1)
            if self.training:
                self.u.copy_(u)
                self.v.copy_(v.view(shape).permute(inverse).flatten())
            return estimates


@torch.no_grad()
def _iterate(matrix: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the next estimates (m,) and (n,) of the singular vectors of ``matrix`` (m, n)."""
    v = nn.functional.normalize(matrix.T @ u, dim=0, eps=NORM_EPS)
    return nn.functional.normalize(matrix @ v, dim=0, eps=NORM_EPS), v


class UNetDiscriminator(nn.Module):
    """Maps images or features (B, C, H, W) to per-pixel logits (B, 1, H, W); H and W are multiples
    of ``MULTIPLE``, since the levels that are added must have the same size.

    ``passes`` is the number of equal pieces of the batch that count as forwards of their own.
    The logits are float32 (or float64) under autocast, too.
    """

    # Three halvings.
    MULTIPLE = 8

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
        levels = [nn.functional.leaky_relu(self.conv0(x), LEAK)]
        for down in (self.conv1, self.conv2, self.conv3):
            levels.append(down.leaky(levels[-1], passes))
        h = levels.pop()
        for up in (self.conv4, self.conv5, self.conv6):
            h = up.leaky(_doubled(h, fused=up.fused), passes, added=levels.pop())
        h = self.conv7.leaky(h, passes)
        h = self.conv8.leaky(h, passes)
        return at_least_float32(self.conv9(h))


def _doubled(x: Tensor, *, fused: bool) -> Tensor:
    """Doubles the size bilinearly; the convolution that follows rounds its input anyway."""
    if fused and fused_norm.fits(x):
        return fused_discriminator.doubled(x)
    with as_narrow_as_it_is(x):
        return nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
