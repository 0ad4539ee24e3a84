"""Nearest upsampling by 2 and its convolution in one operation, with 4/9 of the products."""

import torch
from torch import Tensor, nn


class Doubling:
    """Computes ``convolution(upsampled x)`` from (1, C, n, W) to (1, O, 2 n, 2 W), to rounding.

    ``convolution`` has kernel 3 and padding 1. Each result depends on 2 x 2 positions before the
    upsampling, on some of them by several weights. The constructor adds these weights up, and one
    convolution with kernel 2 computes all four results around a corner; the upsampled features,
    four times as many, are never made. Not for training: PyTorch's gradients of it are no faster.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        self._channels = convolution.out_channels
        # By rows, then by columns: the upper result sees (0, 1 + 2), the lower one (0 + 1, 2).
        up, middle, down = convolution.weight.detach().unbind(2)
        upper = torch.stack([up, middle + down], 2)
        lower = torch.stack([up + middle, down], 2)
        left, middle, right = torch.stack([upper, lower]).unbind(-1)
        lefts = torch.stack([left, middle + right], -1)
        rights = torch.stack([left + middle, right], -1)
        kernel = torch.stack([lefts, rights], 1).flatten(0, 2)
        self._kernel = kernel.contiguous(memory_format=torch.channels_last)
        bias = convolution.bias
        self._bias = None if bias is None else bias.detach().repeat(4)

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        corners = nn.functional.conv2d(x, self._kernel, self._bias, padding=1)
        corners = corners[0].permute(1, 2, 0).unflatten(2, (2, 2, self._channels))
        out = corners.new_empty(height, 2, width, 2, self._channels)
        for i in range(2):
            for j in range(2):
                # Results further down or to the right depend on positions further on.
                out[:, i, :, j] = corners[i : i + height, j : j + width, i, j]
        return out.view(2 * height, 2 * width, self._channels).permute(2, 0, 1).unsqueeze(0)
