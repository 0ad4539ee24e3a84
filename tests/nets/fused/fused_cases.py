"""Compares the fused operations with PyTorch's own in float64; prints the distances as JSON.

On a GPU as they are; elsewhere in Triton's interpreter, which runs the same kernels on the CPU.
Triton decides that when it is imported, so this is a program of its own.
"""

# ruff: noqa: E402
from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from torch import Tensor, nn
from torch.nn import functional

if DEVICE == "cpu":
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return multiply(self, widened(a), widened(b), *others)

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    # Triton 3.8's interpreter multiplies the bits of bfloat16 as if they were integers.
    multiply = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = create_dot

from qdmr_ray.nets import DiscriminatorSettings, SwinSettings, UNetDiscriminator
from qdmr_ray.nets.blocks import NORM_EPS, NORM_GROUPS, ResBlock
from qdmr_ray.nets.discriminator import SpectralConv2d
from qdmr_ray.nets.fused import attention as fused_attention
from qdmr_ray.nets.fused import discriminator as fused
from qdmr_ray.nets.fused import norm as fused_norm
from qdmr_ray.nets.swin import MASKED, SwinBlock, SwinBottleneck

# Widths that are powers of 2 and not, whole tiles and parts of them, a map of one line.
SHAPES = ((2, 64, 16, 16), (3, 48, 9, 7), (1, 256, 8, 8), (2, 6, 40, 33), (4, 12, 1, 5))
DTYPES = (torch.float32, torch.bfloat16)
LEAK = 0.2
OPCHECKS = ("test_schema", "test_faketensor")
# Batch, height, width, heads, dimensions of each, window and shift: also a map of a single window,
# and more windows of a head than programs, so that one program takes several.
MAPS = (
    (2, 8, 12, 2, 16, 4, 0),
    (2, 8, 12, 2, 16, 4, 2),
    (1, 4, 4, 1, 32, 4, 2),
    (1, 16, 8, 2, 32, 8, 4),
    (9, 16, 16, 4, 16, 4, 2),
)


def main() -> None:
    found = {}
    for i, shape in enumerate(SHAPES):
        # The narrower type differs in what is loaded and stored alone.
        for dtype in DTYPES if i < 2 else DTYPES[:1]:
            for case in (norm, norm_and_bias, leaky, leaky_and_sum, doubled):
                torch.manual_seed(0)
                found[f"{case.__name__} {shape} {dtype}"] = case(shape, dtype)
    for i, sizes in enumerate(MAPS):
        for dtype in DTYPES if i < 2 else DTYPES[:1]:
            torch.manual_seed(0)
            found[f"attention {sizes} {dtype}"] = attention(*sizes, dtype)
    for name, arguments in operators():
        # Shapes, types and strides that the compiler is told, and that nothing is written to.
        torch.library.opcheck(getattr(torch.ops.qdmr_ray, name), arguments, test_utils=OPCHECKS)
    # From here on the networks take every map for one on a GPU.
    fused_norm.fits = lambda x: x.dtype != torch.float64
    fused_attention.fits = lambda x, heads, window: x.dtype != torch.float64
    ResBlock.fused = SpectralConv2d.fused = SwinBlock.fused = True
    # float32 is float32 on GPUs, too.
    torch.backends.cudnn.allow_tf32 = False
    found["residual block"] = module(ResBlock(64), (2, 64, 12, 8))
    for passes in (1, 3):
        judge = UNetDiscriminator(3, DiscriminatorSettings(width=8))
        found[f"discriminator, {passes} passes"] = module(judge, (3, 3, 16, 24), passes)
    found["bottleneck"] = module(bottleneck(32), (2, 32, 8, 12))
    found["compiled bottleneck"] = compiled(bottleneck(16), (1, 16, 4, 8))
    found["compiled residual block"] = compiled(ResBlock(8), (2, 8, 6, 5))
    found["compiled discriminator"] = compiled(
        UNetDiscriminator(3, DiscriminatorSettings(width=8)), (2, 3, 8, 8), 2
    )
    json.dump(found, sys.stdout)


def operators() -> list[tuple[str, tuple[Any, ...]]]:
    """Each registered operator with arguments."""
    shape = (2, 6, 4, 5)
    x, dy = images(shape, torch.float32), images(shape, torch.float32)
    affine, scales = (vector(6), vector(6), vector(6)), vector(2)
    qkv, biases = torch.randn(2, 4, 8, 96, device=DEVICE), torch.randn(2, 16, 16, device=DEVICE)
    y, *known = torch.ops.qdmr_ray.norm_silu(x, *affine, 3, NORM_EPS)
    return [
        ("norm_silu", (x, *affine, 3, NORM_EPS)),
        ("norm_silu_gradient", (dy, x, *affine[:2], *known, 3)),
        ("scaled_leaky", (x, scales, LEAK, None)),
        ("scaled_leaky", (x, scales, LEAK, y)),
        ("scaled_leaky_gradient", (x, dy, scales, LEAK)),
        ("double", (x,)),
        ("double_gradient", (images((2, 6, 4, 6), torch.bfloat16),)),
        ("attend", (qkv, biases, 4, 2, MASKED)),
        ("attend_gradient", (qkv[..., :32].contiguous(), qkv, biases, 4, 2, MASKED)),
    ]


def compiled(network: nn.Module, shape: tuple[int, ...], *args: int) -> float:
    """The distance of a network that was compiled, in one graph, from itself."""
    network = network.to(DEVICE, memory_format=torch.channels_last).eval()
    # Inductor would build code for the CPU, where Triton's interpreter does the kernels' work.
    fast = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    x = images(shape, torch.float32)
    found = []
    for call in (fast, network):
        out = call(x, *args)
        grads = torch.autograd.grad(out.square().sum(), list(network.parameters()))
        found.append(torch.cat([out.flatten(), *(grad.flatten() for grad in grads)]))
    ours, theirs = found
    return float(((ours - theirs).norm() / theirs.norm()).detach())


def norm(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    groups = max(g for g in range(1, NORM_GROUPS + 1) if shape[1] % g == 0)
    eps = NORM_EPS
    # A mean that is large beside the deviation: sums of squares would lose the latter.
    inputs = [images(shape, dtype) + 8, vector(shape[1]), vector(shape[1])]
    return distance(
        lambda x, *affine: fused_norm.group_norm_silu(x, groups, *affine, eps),
        lambda x, *affine: functional.silu(functional.group_norm(x, groups, *affine, eps)),
        inputs,
    )


def norm_and_bias(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    # Two channels a group at least: in groups of one a bias changes nothing.
    groups = shape[1] // 2
    inputs = [images(shape, dtype), vector(shape[1]), vector(shape[1]), vector(shape[1])]

    def exact(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor) -> Tensor:
        shifted = x + bias[:, None, None]
        return functional.silu(functional.group_norm(shifted, groups, weight, offset, NORM_EPS))

    return distance(
        lambda x, weight, offset, bias: fused_norm.group_norm_silu(
            x, groups, weight, offset, NORM_EPS, bias
        ),
        exact,
        inputs,
    )


def leaky(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    return distance(
        lambda x, scales: fused.scaled_leaky_relu(x, scales, LEAK, None),
        lambda x, scales: functional.leaky_relu(x * scales[:, None, None, None], LEAK),
        # An estimate may be negative before it has converged.
        [images(shape, dtype), vector(shape[0]) - 0.3],
    )


def leaky_and_sum(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    return distance(
        lambda x, scales, added: fused.scaled_leaky_relu(x, scales, LEAK, added),
        lambda x, scales, added: functional.leaky_relu(x * scales, LEAK) + added,
        [images(shape, dtype), vector(1), images(shape, dtype)],
    )


def doubled(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    return distance(
        fused.doubled,
        lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
        [images(shape, dtype)],
    )


def attention(
    batch: int,
    height: int,
    width: int,
    heads: int,
    dim: int,
    window: int,
    shift: int,
    dtype: torch.dtype,
) -> float:
    """Beside the definition: all pairs of a map's tokens, of which windows and bands leave some."""
    tokens = window * window
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    row, column = (row - shift) % height, (column - shift) % width
    bands = [(x >= x.max() + 1 - window).int() + (x > x.max() - shift) for x in (row, column)]
    region = (bands[0] * 3 + bands[1]).flatten().to(DEVICE)
    place = (row // window * width + column // window).flatten().to(DEVICE)
    token = (row % window * window + column % window).flatten().to(DEVICE)

    def exact(qkv: Tensor, bias: Tensor) -> Tensor:
        q, k, v = qkv.view(batch, height * width, 3, heads, dim).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT / dim**0.5 + bias[:, token[:, None], token[None, :]]
        logits = logits + MASKED * (region[:, None] != region[None, :])
        logits = logits.masked_fill(place[:, None] != place[None, :], -torch.inf)
        out = logits.softmax(-1) @ v
        return out.transpose(1, 2).reshape(batch, height, width, heads * dim)

    qkv = torch.randn(batch, height, width, 3 * heads * dim, device=DEVICE).to(dtype)
    return distance(
        lambda *x: fused_attention.window_attention(*x, window, shift, MASKED),
        exact,
        [qkv, torch.randn(heads, tokens, tokens, device=DEVICE)],
    )


def bottleneck(channels: int) -> SwinBottleneck:
    """With biases that matter."""
    settings = SwinSettings(groups=1, blocks=2, heads=channels // 16, window=4, mlp_ratio=2.0)
    made = SwinBottleneck(channels, settings)
    for name, parameter in made.named_parameters():
        if "bias_table" in name:
            nn.init.normal_(parameter)
    return made


def module(fast: nn.Module, shape: tuple[int, ...], *args: int) -> float:
    """Output and gradients of a module as it is, and in float64, where nothing is fused."""
    fast = fast.to(DEVICE, memory_format=torch.channels_last)
    exact = copy.deepcopy(fast).double()
    names = [name for name, _ in fast.named_parameters()]

    def call(network: nn.Module) -> Callable[..., Tensor]:
        return lambda x, *weights: torch.func.functional_call(
            network, dict(zip(names, weights, strict=True)), (x, *args)
        )

    inputs = [images(shape, torch.float32), *(p.detach() for p in fast.parameters())]
    return distance(call(fast), call(exact), inputs)


def distance(
    fast: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Tensor]
) -> float:
    """The largest of |found - wanted| / |wanted|, for the output and the inputs' gradients."""
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    out, wanted = fast(*ours), exact(*theirs)
    assert out.dtype == inputs[0].dtype
    assert out.shape == wanted.shape
    # Contiguous, unlike what it belongs to.
    grad = torch.randn(wanted.shape, device=DEVICE).to(out.dtype)
    out.backward(grad)
    wanted.backward(grad.double())
    pairs = [(out, wanted), *((a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))]
    return max(float(((a - b).norm() / b.norm()).detach()) for a, b in pairs)


def images(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    x = torch.randn(shape, device=DEVICE).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def vector(length: int) -> Tensor:
    return torch.randn(length, device=DEVICE)


if __name__ == "__main__":
    main()
