"""Registers launches of kernels as PyTorch's own operators, ``torch.ops.qdmr_ray.NAME``: its
compiler, which can't look into a launch, then calls them as they are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NAMESPACE = "qdmr_ray"
_LIBRARY = torch.library.Library(_NAMESPACE, "DEF")


def operator(results: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function that launches kernels and returns new tensors. ``results`` takes the
    same arguments and returns tensors of the same shapes, types and memory order, with any values.
    """

    # Not torch.library.custom_op: its first call imports the compiler, which takes two seconds.
    def register(launch: Callable[..., Any]) -> Any:
        name = launch.__name__
        schema = torch.library.infer_schema(launch, mutates_args=())
        # The compiler must not turn images over on their way to a kernel.
        _LIBRARY.define(name + schema, tags=(torch.Tag.needs_fixed_stride_order,))
        _LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{_NAMESPACE}::{name}", results, lib=_LIBRARY)
        return getattr(getattr(torch.ops, _NAMESPACE), name)

    return register


def channels_last(x: Tensor) -> Tensor:
    """Returns the images (B, C, H, W) with channels innermost in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_images(like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Returns images of ``shape``, else of that of ``like``, with channels innermost in memory."""
    return torch.empty(
        like.shape if shape is None else shape,
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )
