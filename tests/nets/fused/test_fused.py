"""What GPUs compute in fused kernels: the same as PyTorch, and that the kernels can be built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qdmr_ray.nets.fused import attention as fused_attention
from qdmr_ray.nets.fused import norm as fused_norm

triton = pytest.importorskip("triton", reason="PyTorch came without Triton")

# Rounding of one value to float32 or bfloat16, and some of what sums add to it.
TOLERANCES = {"float32": 5e-6, "bfloat16": 5e-3}
POINTER, NARROW, COUNT, NUMBER = "*fp32", "*bf16", "i32", "fp32"
ROWS, PIXELS = {"ROWS": 64, "CHANNELS": 64}, {"PIXELS": 32, "CHANNELS": 64}
WINDOW = {"WINDOW": 8, "TOKENS": 64, "DIM": 32, "SHIFT": 4}
GROUP = {"CHUNKS": 128, "WIDTH": 2}
KERNELS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "norm_moments": ([NARROW, *[POINTER] * 2, *[COUNT] * 3], ROWS),
    "norm_statistics": ([*[POINTER] * 10, *[COUNT] * 5, NUMBER], GROUP),
    "norm_activate": ([NARROW, *[POINTER] * 2, NARROW, *[COUNT] * 2], ROWS),
    "norm_gradient_sums": ([*[NARROW] * 2, *[POINTER] * 7, *[COUNT] * 4], ROWS),
    "norm_gradient_statistics": ([*[POINTER] * 9, *[COUNT] * 5], GROUP),
    "norm_gradient": ([*[NARROW] * 2, *[POINTER] * 7, NARROW, *[COUNT] * 3], ROWS),
    "leaky": ([NARROW, POINTER, *[NARROW] * 2, COUNT, NUMBER], {"BLOCK": 4096, "ADDED": True}),
    "leaky_gradient": (
        [*[NARROW] * 2, POINTER, NARROW, POINTER, COUNT, NUMBER],
        {"BLOCK": 4096},
    ),
    "attention": ([NARROW, POINTER, NARROW, *[COUNT] * 3, *[NUMBER] * 2], WINDOW),
    "attention_gradient": (
        [NARROW, POINTER, *[NARROW] * 2, POINTER, *[COUNT] * 5, *[NUMBER] * 2],
        WINDOW,
    ),
    "double": ([*[NARROW] * 2, *[COUNT] * 3], PIXELS),
    "double_gradient": ([*[NARROW] * 2, *[COUNT] * 3], PIXELS),
}


@pytest.mark.slow
def test_they_give_what_pytorch_gives() -> None:
    """Outputs and gradients beside float64, in a process whose Triton interprets its kernels."""
    script = Path(__file__).with_name("fused_cases.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 44
    for case, distance in found.items():
        kind = "bfloat16" if case.endswith("bfloat16") else "float32"
        # The tensor cores get rounded weights, and rounded gradients of logits.
        roundings = 2 if case.startswith("attention") else 1
        assert distance < roundings * TOLERANCES[kind], case


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_can_be_built_for_a_gpu(name: str) -> None:
    """Triton's compiler refuses some of what its interpreter takes; it needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qdmr_ray.nets.fused import attention_kernels, kernels

    types, constants = KERNELS[name]
    kernel = getattr(attention_kernels if "attention" in name else kernels, name)
    signature = dict.fromkeys(kernel.arg_names, "constexpr")
    signature |= dict(zip(kernel.arg_names, types, strict=False))
    source = ASTSource(kernel, signature, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert built.asm["cubin"]


def test_every_row_is_in_one_chunk() -> None:
    for images, rows, tile in ((1, 1, 64), (8, 65536, 64), (12, 1024, 16), (2000, 77, 32)):
        chunks, rows_each = fused_norm.chunks_of(images, rows, tile)
        assert rows_each % tile == 0
        assert (chunks - 1) * rows_each < rows <= chunks * rows_each


def test_nothing_is_fused_on_the_cpu() -> None:
    images = torch.zeros(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert not fused_norm.fits(images)
    assert not fused_attention.fits(torch.zeros(1, 8, 8, 32), 1, 8)
