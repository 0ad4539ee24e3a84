"""The discriminator's elementwise work on GPUs: one pass over memory where PyTorch takes several.

The discriminator's feature maps are the largest of a training step. The kernels compute in float32,
whatever the maps' type.
"""

from typing import Any

import torch
from torch import Tensor

from qdmr_ray.nets.fused.norm import ceil_div, power_of_2_from
from qdmr_ray.nets.fused.operators import channels_last, empty_images, operator

try:
    from qdmr_ray.nets.fused import kernels
except ImportError:  # Where PyTorch comes without Triton, for example on Windows and macOS.
    kernels = None  # type: ignore[assignment]

_BLOCK = 4096
_WARPS = 8


def scaled_leaky_relu(x: Tensor, scales: Tensor, leak: float, added: Tensor | None) -> Tensor:
    """Returns ``leaky_relu(x * scale) + added`` for maps (B, C, H, W), in the type of ``x``.

    ``scales`` is float32 (passes,): the batch holds that many consecutive passes of equal size, and
    each has its own scale.
    """
    return _ScaledLeakyReLU.apply(x, scales, leak, added)


def doubled(x: Tensor) -> Tensor:
    """Doubles maps (B, C, H, W) in size, bilinearly by pixel centres and with edges repeated."""
    return _Doubled.apply(x)


class _ScaledLeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Tensor, leak: float, added: Tensor | None) -> Tensor:
        # A convolution's output may have another memory order than its input.
        x = channels_last(x)
        ctx.save_for_backward(x, scales)
        ctx.leak, ctx.adds = leak, added is not None
        return scaled_leaky(x, scales, leak, None if added is None else channels_last(added))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, scales = ctx.saved_tensors
        dy = channels_last(grads[0])
        dx, sums = scaled_leaky_gradient(x, dy, scales, ctx.leak)
        return dx, sums.sum(1), None, dy if ctx.adds else None


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return double(channels_last(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return double_gradient(channels_last(grads[0]))


def _activated(x: Tensor, scales: Tensor, leak: float, added: Tensor | None) -> Tensor:
    return empty_images(x)


@operator(_activated)
def scaled_leaky(x: Tensor, scales: Tensor, leak: float, added: Tensor | None) -> Tensor:
    """Launches what :func:`scaled_leaky_relu` returns."""
    y = _activated(x, scales, leak, added)
    size = x.numel() // len(scales)
    kernels.leaky[ceil_div(size, _BLOCK), len(scales)](
        *(x, scales, x if added is None else added, y, size, leak),
        BLOCK=_BLOCK,
        ADDED=added is not None,
        num_warps=_WARPS,
    )
    return y


def _activated_gradient(
    x: Tensor, dy: Tensor, scales: Tensor, leak: float
) -> tuple[Tensor, Tensor]:
    blocks = ceil_div(x.numel() // len(scales), _BLOCK)
    return empty_images(x), scales.new_empty((len(scales), blocks))


@operator(_activated_gradient)
def scaled_leaky_gradient(
    x: Tensor, dy: Tensor, scales: Tensor, leak: float
) -> tuple[Tensor, Tensor]:
    """Launches the gradient of ``x`` and, by block, the sums (passes, blocks) of the scales'."""
    dx, sums = _activated_gradient(x, dy, scales, leak)
    kernels.leaky_gradient[sums.shape[1], sums.shape[0]](
        *(x, dy, scales, dx, sums, x.numel() // len(scales), leak), BLOCK=_BLOCK, num_warps=_WARPS
    )
    return dx, sums


def _larger(x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    return empty_images(x, (images, channels, 2 * height, 2 * width))


@operator(_larger)
def double(x: Tensor) -> Tensor:
    """Launches what :func:`doubled` returns."""
    y, (_, channels, height, width) = _larger(x), x.shape
    kernels.double[_pixel_grid(x)](x, y, height, width, channels, **_pixel_tile(channels))
    return y


def _smaller(dy: Tensor) -> Tensor:
    images, channels, height, width = dy.shape
    return empty_images(dy, (images, channels, height // 2, width // 2))


@operator(_smaller)
def double_gradient(dy: Tensor) -> Tensor:
    """Launches the gradient of :func:`doubled`'s input."""
    dx = _smaller(dy)
    _, channels, height, width = dx.shape
    kernels.double_gradient[_pixel_grid(dx)](
        dy, dx, height, width, channels, **_pixel_tile(channels)
    )
    return dx


def _pixel_tile(channels: int) -> dict[str, int]:
    wide = power_of_2_from(channels)
    return {"PIXELS": max(1, _BLOCK // 2 // wide), "CHANNELS": wide, "num_warps": _WARPS}


def _pixel_grid(smaller: Tensor) -> tuple[int, int]:
    images, channels, height, width = smaller.shape
    return ceil_div(height * width, _pixel_tile(channels)["PIXELS"]), images
