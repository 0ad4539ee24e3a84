"""Attention inside shifted windows in one operation, for maps of tokens on GPUs.

PyTorch's way there rolls the map, cuts it into windows, makes a bias with the mask for each of them
and goes all the way back, forwards and for the gradients: each a pass over memory. Here the kernels
find a window's tokens where they lie, and add bias and mask to logits that never leave registers.
"""

from typing import Any

import torch
from torch import Tensor

from qdmr_ray.nets.fused.norm import DTYPES, ceil_div
from qdmr_ray.nets.fused.operators import operator

try:
    from qdmr_ray.nets.fused import attention_kernels as kernels
except ImportError:  # Where PyTorch comes without Triton, for example on Windows and macOS.
    kernels = None  # type: ignore[assignment]

# Sizes of the matrices that the tensor cores multiply and the registers hold.
_TOKENS, _DIMS = (16, 64), (16, 32, 64, 128)
# Programs that compute gradients: four for each of a large GPU's 132 multiprocessors. Each writes a
# matrix of the bias' gradient.
_PROGRAMS = 528
_WARPS = 4


def fits(x: Tensor, heads: int, window: int) -> bool:
    """Returns whether the fused operation takes the channels of tokens ``x`` (B, h, w, C)."""
    dim, rest = divmod(x.shape[-1], heads)
    return (
        kernels is not None
        and x.is_cuda
        and x.dtype in DTYPES
        and window * window in _TOKENS
        and dim in _DIMS
        and not rest
    )


def window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int, masked: float) -> Tensor:
    """Returns what the heads attend to, (B, h, w, C) in the type of ``qkv``.

    ``qkv`` (B, h, w, 3 C) holds q, k and v, each by head; ``bias`` (heads, t, t) is added to the
    logits of the t tokens of each window. Windows are those of the map rolled by ``-shift``, where
    ``masked`` is added to logits between tokens that only the roll brought together.
    """
    return _WindowAttention.apply(qkv, bias, window, shift, masked)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor, window: int, shift: int, masked: float
    ) -> Tensor:
        qkv = qkv.contiguous()
        ctx.save_for_backward(qkv, bias)
        ctx.how = window, shift, masked
        return attend(qkv, bias, *ctx.how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        qkv, bias = ctx.saved_tensors
        dqkv, sums = attend_gradient(grads[0].contiguous(), qkv, bias, *ctx.how)
        return dqkv, sums.sum(0).to(bias.dtype), None, None, None


def _sizes(qkv: Tensor, bias: Tensor, window: int, shift: int) -> tuple[int, dict[str, int]]:
    """Returns the windows, and the kernels' tile."""
    batch, height, width, channels = qkv.shape
    dim = channels // 3 // len(bias)
    tile = {"WINDOW": window, "TOKENS": window * window, "DIM": dim, "SHIFT": shift}
    return batch * (height // window) * (width // window), tile | {"num_warps": _WARPS}


def _attended(qkv: Tensor, bias: Tensor, window: int, shift: int, masked: float) -> Tensor:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@operator(_attended)
def attend(qkv: Tensor, bias: Tensor, window: int, shift: int, masked: float) -> Tensor:
    """Launches what :func:`window_attention` returns."""
    y = _attended(qkv, bias, window, shift, masked)
    windows, tile = _sizes(qkv, bias, window, shift)
    _, height, width, channels = y.shape
    kernels.attention[windows, len(bias)](
        *(qkv, bias.contiguous(), y, height, width, channels, tile["DIM"] ** -0.5, masked), **tile
    )
    return y


def _chunks(qkv: Tensor, bias: Tensor, window: int, shift: int) -> tuple[int, int]:
    """Returns the chunks of windows that programs compute gradients for, and windows in each."""
    windows, _ = _sizes(qkv, bias, window, shift)
    each = ceil_div(windows * len(bias), _PROGRAMS)
    return ceil_div(windows, each), each


def _attended_gradient(
    dy: Tensor, qkv: Tensor, bias: Tensor, window: int, shift: int, masked: float
) -> tuple[Tensor, Tensor]:
    chunks, _ = _chunks(qkv, bias, window, shift)
    return torch.empty_like(qkv), bias.new_empty((chunks, *bias.shape), dtype=torch.float32)


@operator(_attended_gradient)
def attend_gradient(
    dy: Tensor, qkv: Tensor, bias: Tensor, window: int, shift: int, masked: float
) -> tuple[Tensor, Tensor]:
    """Launches the gradient of ``qkv`` and, by chunk of windows, the sums of the bias'."""
    dqkv, sums = _attended_gradient(dy, qkv, bias, window, shift, masked)
    windows, tile = _sizes(qkv, bias, window, shift)
    chunks, each = _chunks(qkv, bias, window, shift)
    _, height, width, channels = dy.shape
    kernels.attention_gradient[chunks, len(bias)](
        *(qkv, bias.contiguous(), dy, dqkv, sums, windows, each, height, width, channels),
        *(tile["DIM"] ** -0.5, masked),
        **tile,
    )
    return dqkv, sums
