"""Bias, group normalisation and SiLU in one operation, for channels-last images on GPUs.

PyTorch's group normalisation on CUDA works on contiguous images and, under autocast, in float32:
each call changed memory format and type twice, which took more of a bfloat16 training step than
its convolutions (``tests/benchmarks/README.md``). Here images keep memory format and type, and the
arithmetic is float32.

The forward and the backward pass have three kernels each: the first reduces chunks of an image's
rows by channel, the second, a small one, combines the chunks by group, and the third does the
elementwise work.
"""

from typing import Any

import torch
from torch import Tensor

from qdmr_ray.nets.fused.operators import channels_last, empty_images, operator

try:
    from qdmr_ray.nets.fused import kernels
except ImportError:  # Where PyTorch comes without Triton, for example on Windows and macOS.
    kernels = None  # type: ignore[assignment]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Values that a program holds at once; MOST_CHANNELS keeps its rows from becoming too few.
_TILE = 4096
_WARPS = 8
MOST_CHANNELS = 1024
# Programs that reduce one batch: eight for each of a large GPU's 132 multiprocessors.
_PROGRAMS = 1056
_MOST_CHUNKS = 128


def fits(x: Tensor) -> bool:
    """Returns whether the fused operations take images ``x`` (B, C, H, W)."""
    return (
        kernels is not None
        and x.is_cuda
        and x.dtype in DTYPES
        and x.shape[1] <= MOST_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, offset: Tensor, eps: float, bias: Tensor | None = None
) -> Tensor:
    """Returns ``silu(group_norm(x + bias, groups, weight, offset, eps))`` in the type of ``x``, for
    images (B, C, H, W) that fit; ``weight``, ``offset`` and ``bias`` are (C,). The gradient of
    ``bias`` needs no further pass: it follows from the other gradients' sums."""
    bias = torch.zeros_like(weight) if bias is None else bias
    return _GroupNormSiLU.apply(x, bias, weight, offset, groups, eps)


def chunks_of(images: int, rows: int, tile_rows: int) -> tuple[int, int]:
    """Returns the programs per image that reduce its rows, and the rows of each (whole tiles)."""
    wanted = min(_MOST_CHUNKS, max(1, _PROGRAMS // images))
    tiles = ceil_div(rows, tile_rows)
    tiles_each = ceil_div(tiles, wanted)
    return ceil_div(tiles, tiles_each), tiles_each * tile_rows


def ceil_div(a: int, b: int) -> int:
    """Returns ``a / b``, rounded up."""
    return -(-a // b)


def power_of_2_from(count: int) -> int:
    """Returns the smallest power of 2 that isn't below ``count``."""
    return 1 << (count - 1).bit_length()


def _sizes(x: Tensor) -> tuple[int, int, int, dict[str, int]]:
    """Returns images, rows and channels of ``x``, and the kernels' tile."""
    images, channels, height, width = x.shape
    wide = power_of_2_from(channels)
    tile = {"ROWS": max(1, _TILE // wide), "CHANNELS": wide, "num_warps": _WARPS}
    return images, height * width, channels, tile


def _group_tile(chunks: int, width: int) -> dict[str, int]:
    return {"CHUNKS": power_of_2_from(chunks), "WIDTH": power_of_2_from(width), "num_warps": 4}


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, groups: int, eps: float
    ) -> Tensor:
        x = channels_last(x)
        y, by_channel, by_group = norm_silu(x, bias, weight, offset, groups, eps)
        ctx.groups = groups
        ctx.save_for_backward(x, bias, weight, by_channel, by_group)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *known = ctx.saved_tensors
        dx, others = norm_silu_gradient(channels_last(grads[0]), x, *known, ctx.groups)
        of_weight, of_offset, of_bias = others
        return dx, of_bias, of_weight, of_offset, None, None


def _normalised(
    x: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    images, channels = x.shape[:2]
    by_channel = x.new_empty((3, images, channels), dtype=torch.float32)
    return empty_images(x), by_channel, x.new_empty((2, images, groups), dtype=torch.float32)


@operator(_normalised)
def norm_silu(
    x: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches what :func:`group_norm_silu` returns; also returns each channel's mean, scale and
    shift, (3, images, channels), and each group's mean and 1 / standard deviation."""
    y, by_channel, by_group = _normalised(x, bias, weight, offset, groups, eps)
    images, rows, channels, tile = _sizes(x)
    chunks, rows_each = chunks_of(images, rows, tile["ROWS"])
    by_chunk = x.new_empty((2, images, chunks, channels), dtype=torch.float32)
    kernels.norm_moments[(chunks, images)](x, *by_chunk, rows, rows_each, channels, **tile)
    kernels.norm_statistics[(images, groups)](
        *(*by_chunk, bias, weight, offset, by_channel[0], *by_group, *by_channel[1:]),
        *(chunks, rows, rows_each, channels, groups, eps),
        **_group_tile(chunks, channels // groups),
    )
    tiles = ceil_div(rows, tile["ROWS"])
    kernels.norm_activate[(tiles, images)](x, *by_channel[1:], y, rows, channels, **tile)
    return y, by_channel, by_group


def _gradients(
    dy: Tensor,
    x: Tensor,
    bias: Tensor,
    weight: Tensor,
    by_channel: Tensor,
    by_group: Tensor,
    groups: int,
) -> tuple[Tensor, Tensor]:
    return empty_images(x), weight.new_empty((3, len(weight)))


@operator(_gradients)
def norm_silu_gradient(
    dy: Tensor,
    x: Tensor,
    bias: Tensor,
    weight: Tensor,
    by_channel: Tensor,
    by_group: Tensor,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Launches the gradient of ``x``; also returns those of weight, offset and bias, (3, C)."""
    images, rows, channels, tile = _sizes(x)
    chunks, rows_each = chunks_of(images, rows, tile["ROWS"])
    dx = empty_images(x)
    by_chunk = x.new_empty((2, images, chunks, channels), dtype=torch.float32)
    whole = torch.empty_like(by_channel)
    subtracted = torch.empty_like(by_group)
    known = (bias, *by_channel[1:], *by_group)
    kernels.norm_gradient_sums[(chunks, images)](
        x, dy, *known, *by_chunk, rows, rows_each, channels, groups, **tile
    )
    kernels.norm_gradient_statistics[(images, groups)](
        *(*by_chunk, weight, by_channel[0], *by_group, whole, *subtracted),
        *(chunks, rows, channels, groups, images),
        **_group_tile(chunks, channels // groups),
    )
    tiles = ceil_div(rows, tile["ROWS"])
    kernels.norm_gradient[(tiles, images)](
        x, dy, *known, *subtracted, dx, rows, channels, groups, **tile
    )
    return dx, whole.sum(1).to(weight.dtype)
