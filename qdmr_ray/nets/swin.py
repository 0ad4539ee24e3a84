"""Swin bottleneck: windowed self-attention over the features (Liu et al., ICCV 2021)."""

import torch
from torch import Tensor, nn

from qdmr_ray.nets.blocks import apply_layers, as_narrow_as_it_is, exporting
from qdmr_ray.nets.fused import attention as fused_attention
from qdmr_ray.nets.settings import SwinSettings

LAYER_NORM_EPS = 1e-5
BIAS_STD = 0.02
# Added to the logits between regions that are neighbours only through the roll.
MASKED = -100.0


def relative_position_index(window: int) -> Tensor:
    """Returns the bias table's row for each (query, key) pair of a window, int64 (w*w, w*w)."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    rows = y[:, None] - y[None, :] + window - 1
    columns = x[:, None] - x[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def shift_mask(
    height: int, width: int, window: int, shift: int, device: torch.device | None = None
) -> Tensor:
    """Returns logit offsets 0 or -100, float32 (windows, w*w, w*w), for a map rolled by ``-shift``.

    Each axis falls into three bands: all but the last window, the rest of it up to the shift, and
    the ``shift`` rows that the roll moved there. Positions attend freely only within a band pair.
    """
    bands = [torch.arange(size, device=device) for size in (height, width)]
    labels = [(b >= b.numel() - window).int() + (b >= b.numel() - shift).int() for b in bands]
    regions = labels[0][:, None] * 3 + labels[1][None, :]
    per_window = (
        regions.view(height // window, window, width // window, window)
        .transpose(1, 2)
        .reshape(-1, window * window)
    )
    different = per_window[:, :, None] != per_window[:, None, :]
    return different.float() * MASKED


class WindowAttention(nn.Module):
    """Multi-head attention inside windows (windows, w*w, C) with a learned relative position bias;
    ``mask`` is a result of :func:`shift_mask` or None."""

    position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=BIAS_STD)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        if self.bias_table.is_meta:
            # Only the shape counts there; to compute, PyTorch would import 800 modules.
            index = torch.empty(window**4, dtype=torch.int64)
        else:
            index = relative_position_index(window).flatten()
        self.register_buffer("position_index", index, persistent=False)

    def logit_bias(self) -> Tensor:
        """Returns the bias (heads, w*w, w*w) gathered from the table."""
        side = round(self.position_index.numel() ** 0.5)
        # Columns of the transposed table: the gradient of indexing its rows took ten times as long.
        return self.bias_table.T.index_select(1, self.position_index).view(self.heads, side, side)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, tokens, channels = x.shape
        bias = self.logit_bias().to(x.dtype)
        if mask is not None:
            # The mask repeats for each image of the batch, whose windows are consecutive.
            bias = bias + mask.to(x.dtype)[:, None]
            bias = bias.repeat(windows // mask.shape[0], 1, 1, 1)
        qkv = self.qkv(x).view(windows, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.projection(out.transpose(1, 2).reshape(x.shape))

    def over_map(self, x: Tensor, window: int, shift: int) -> Tensor:
        """Returns what ``forward`` does for the windows of a map of tokens (B, h, w, C), rolled by
        ``-shift`` and back, on a GPU."""
        out = fused_attention.window_attention(
            self.qkv(x), self.logit_bias(), window, shift, MASKED
        )
        return self.projection(out)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of tokens (..., C) in their own type, computed in float32 inside."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        with as_narrow_as_it_is(x):
            return nn.functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class SwinBlock(nn.Module):
    """Attention and MLP on tokens (B, h, w, C), each after a layer norm and with a residual."""

    # Whether ``fused_attention`` attends on a GPU.
    fused = False

    def __init__(self, channels: int, settings: SwinSettings, *, shifted: bool) -> None:
        super().__init__()
        self.window = settings.window
        self.shift = settings.window // 2 if shifted else 0
        hidden = round(channels * settings.mlp_ratio)
        self.norm1 = LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.attention = WindowAttention(channels, settings.heads, settings.window)
        self.norm2 = LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self._attend(self.norm1(x), mask if self.shift else None)
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, height, width, channels = x.shape
        w = self.window
        if self.fused and fused_attention.fits(x, self.attention.heads, w):
            return self.attention.over_map(x, w, self.shift)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = x.view(batch, height // w, w, width // w, w, channels).transpose(2, 3)
        out = self.attention(windows.reshape(-1, w * w, channels), mask)
        out = out.view(batch, height // w, width // w, w, w, channels).transpose(2, 3)
        out = out.reshape(x.shape)
        return out.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else out


class SwinGroup(nn.Module):
    """Swin blocks, then a 3x3 convolution, plus the group's input (B, C, h, w)."""

    def __init__(self, channels: int, settings: SwinSettings) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, settings, shifted=i % 2 == 1) for i in range(settings.blocks)
        )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        tokens = x.movedim(1, -1)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return x + self.conv(tokens.movedim(-1, 1))


def recorded(x: Tensor) -> bool:
    """Returns whether a CUDA graph is recording the operations on ``x``."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


class SwinBottleneck(nn.Module):
    """Residual Swin groups over features (B, C, h, w); h and w are multiples of the window."""

    recompute = False

    def __init__(self, channels: int, settings: SwinSettings) -> None:
        super().__init__()
        self.window = settings.window
        self.groups = nn.ModuleList(SwinGroup(channels, settings) for _ in range(settings.groups))
        # The mask depends on the map's size alone, so the last one is kept.
        self._mask: tuple[tuple[int, int, torch.device], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return apply_layers(self.groups, x, self._shift_mask(x), recompute=self.recompute)

    def _shift_mask(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if exporting():
            return shift_mask(height, width, self.window, self.window // 2).to(x.device)
        if recorded(x):
            # A recording makes its own mask: it goes on reading the mask's memory, which a map of
            # another size (a validation photograph) would free from the cache.
            return shift_mask(height, width, self.window, self.window // 2, x.device)
        key = (height, width, x.device)
        if self._mask is None or self._mask[0] != key:
            mask = shift_mask(height, width, self.window, self.window // 2)
            self._mask = (key, mask.to(x.device))
        return self._mask[1]
