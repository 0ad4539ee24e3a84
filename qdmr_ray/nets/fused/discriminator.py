"""The discriminator's elementwise work on GPUs: one pass over memory where PyTorch takes several.

The discriminator's feature maps are the largest of a training step. The kernels compute in float32,
whatever the maps' type.
"""

from typing import Any

import torch
from torch import Tensor

from qdmr_ray.nets.fused.norm import ceil_div, power_of_2_from

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
        x = x.contiguous(memory_format=torch.channels_last)
        if added is not None:
            added = added.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        size = x.numel() // len(scales)
        grid = ceil_div(size, _BLOCK), len(scales)
        kernels.leaky[grid](
            *(x, scales, x if added is None else added, y, size, leak),
            BLOCK=_BLOCK,
            ADDED=added is not None,
            num_warps=_WARPS,
        )
        ctx.save_for_backward(x, scales)
        ctx.leak = leak
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, scales = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        size = x.numel() // len(scales)
        blocks = ceil_div(size, _BLOCK)
        sums = scales.new_empty((len(scales), blocks))
        kernels.leaky_gradient[(blocks, len(scales))](
            x, dy, scales, dx, sums, size, ctx.leak, BLOCK=_BLOCK, num_warps=_WARPS
        )
        return dx, sums.sum(1), None, dy if ctx.needs_input_grad[3] else None


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        y = _empty(x, (images, channels, 2 * height, 2 * width))
        kernels.double[_pixel_grid(x)](x, y, height, width, channels, **_pixel_tile(channels))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        images, channels, height, width = dy.shape
        dx = _empty(dy, (images, channels, height // 2, width // 2))
        kernels.double_gradient[_pixel_grid(dx)](
            dy, dx, height // 2, width // 2, channels, **_pixel_tile(channels)
        )
        return dx


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _pixel_tile(channels: int) -> dict[str, int]:
    wide = power_of_2_from(channels)
    return {"PIXELS": max(1, _BLOCK // 2 // wide), "CHANNELS": wide, "num_warps": _WARPS}


def _pixel_grid(smaller: Tensor) -> tuple[int, int]:
    images, channels, height, width = smaller.shape
    return ceil_div(height * width, _pixel_tile(channels)["PIXELS"]), images
