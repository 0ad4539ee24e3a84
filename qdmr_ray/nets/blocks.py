"""Residual blocks, encoder and decoder shared by the VQGAN and the restoration network."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qdmr_ray.nets.fused import norm as fused_norm

NORM_GROUPS = 32
NORM_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns group normalisation with 32 groups, or the largest divisor of ``channels`` below."""
    groups = max(g for g in range(1, NORM_GROUPS + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def at_least_float32(x: Tensor) -> Tensor:
    """Returns ``x``, or a float32 copy where autocast has narrowed it; for losses and outputs."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keeps autocast from narrowing operations on ``device``; "meta", where operations are only
    counted, has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def as_narrow_as_it_is(x: Tensor) -> AbstractContextManager[object]:
    """Keeps autocast from computing in float32 an operation that loses nothing in ``x``'s type: one
    that computes nothing, or one that computes in float32 inside and rounds its result anyway."""
    if x.dtype == torch.promote_types(x.dtype, torch.float32):
        return nullcontext()
    return without_autocast(x.device)


def exporting() -> bool:
    """Returns whether ``torch.export`` (not ``torch.compile``) is tracing: its graph has to compute
    all that depends on the input's size, for every size."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def apply_layers(layers: Iterable[nn.Module], x: Tensor, *args: Any, recompute: bool) -> Tensor:
    """Applies ``layers`` one after the other, each with ``args``. With ``recompute`` each discards
    its inner activations and computes them again for the gradients (Chen et al., "Training Deep
    Nets with Sublinear Memory Cost", 2016); it must draw no random numbers."""
    for layer in layers:
        if recompute and torch.is_grad_enabled():
            # Random states aren't kept: a CUDA graph that is being recorded lets nobody read them.
            x = checkpoint(layer, x, *args, use_reentrant=False, preserve_rng_state=False)
        else:
            x = layer(x, *args)
    return x


def _norm_silu(norm: nn.GroupNorm, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return fused_norm.group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, bias)


class ResBlock(nn.Module):
    """Maps (B, C, H, W) to ``x + Conv3(SiLU(GN(Conv3(SiLU(GN(x))))))`` of the same shape."""

    # Whether ``fused_norm`` normalises images on a GPU.
    fused = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and fused_norm.fits(x):
            return self._fused(x)
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        return x + h

    def _fused(self, x: Tensor) -> Tensor:
        h = _norm_silu(self.norm1, x)
        h = nn.functional.conv2d(h, self.conv1.weight, padding=1)
        # The second normalisation also adds the first convolution's bias.
        h = _norm_silu(self.norm2, h, self.conv1.bias)
        return x + self.conv2(h)


class Upsample(nn.Upsample):
    """Doubles the size by repeating pixels, in the input's own type, since nothing is computed."""

    def __init__(self) -> None:
        super().__init__(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        with as_narrow_as_it_is(x):
            return super().forward(x)


class Encoder(nn.Module):
    """Maps images (B, 3, H, W) to features (B, widths[-1], H / 2^n, W / 2^n), n = len(widths) - 1.

    The first convolution has kernel 4 and padding 1, so a 256 image becomes 255 before the first
    halving restores 128: the authors' code does so, and trained weights depend on it.
    """

    # Whether the backward pass computes activations again instead of keeping them; so in Decoder.
    recompute = False

    def __init__(self, widths: Sequence[int], residual_blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, widths[0], 4, stride=1, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(wide, narrow, 3, stride=2, padding=1),
                *(ResBlock(narrow) for _ in range(residual_blocks)),
            )
            for wide, narrow in pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        return apply_layers(self.levels, self.first(x.detach()), recompute=self.recompute)


class Decoder(nn.Module):
    """Maps features (B, widths[-1], h, w) to images (B, 3, h * 2^n, w * 2^n), float32 (or float64)
    under autocast, too; has no skip connections."""

    recompute = False

    def __init__(self, widths: Sequence[int], residual_blocks: int) -> None:
        super().__init__()
        upward = list(reversed(widths))
        self.levels = nn.ModuleList(
            nn.Sequential(
                Upsample(),
                nn.Conv2d(below, above, 3, padding=1),
                *(ResBlock(above) for _ in range(residual_blocks)),
            )
            for below, above in pairwise(upward)
        )
        self.last = nn.Conv2d(upward[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        h = apply_layers(self.levels, features, recompute=self.recompute)
        return at_least_float32(self.last(h))


class FeatureFusion(nn.Module):
    """Fuses features ``x`` and code features ``q``, both (B, C, h, w), to ``x * gamma(q) + beta(q)
    + x``: the spatial feature transform of Wang et al., CVPR 2018 (SFTGAN)."""

    LEAK = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = self._branch(channels)
        self.beta = self._branch(channels)

    def _branch(self, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.LeakyReLU(self.LEAK),
            nn.Conv2d(channels, channels, 1, bias=False),
        )

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        return torch.addcmul(self.beta(q) + x, x, self.gamma(q))
