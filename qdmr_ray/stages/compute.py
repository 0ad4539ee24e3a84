"""How the arithmetic of a stage is done: precision, memory layout, compilation, recomputation.

Float32 without any of these gives the method's numbers; each of the others trades a little of
their last digits, or some arithmetic, for speed or memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qdmr_ray.errors import SettingsError
from qdmr_ray.nets.blocks import Decoder, Encoder, ResBlock
from qdmr_ray.nets.discriminator import SpectralConv2d
from qdmr_ray.nets.swin import SwinBlock, SwinBottleneck
from qdmr_ray.settings import Settings, setting

FLOAT32, TF32, BFLOAT16 = "float32", "tf32", "bfloat16"
DTYPES = (FLOAT32, TF32, BFLOAT16)
MOST_COMPILATIONS = 64
# Networks whose passes can be done a second time instead of being remembered.
RECOMPUTABLE = (Encoder, Decoder, SwinBottleneck)
# Those with kernels of their own on GPUs.
FUSABLE = (ResBlock, SpectralConv2d)


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(Settings):
    """Speed and memory of the training steps."""

    dtype: str = setting(
        FLOAT32,
        "float32; tf32: float32 with products in TensorFloat-32 (GPUs since Ampere); bfloat16: "
        "autocast, with codebook distances, losses and adversarial terms in float32",
        choices=DTYPES,
    )
    compile: bool = setting(
        False,
        "torch.compile of encoders, decoders, Swin blocks and discriminators; with cuda_graph of "
        "Swin blocks alone, since the others then have kernels of their own",
    )
    channels_last: bool = setting(True, "images with channels innermost in memory")
    recompute: bool = setting(
        False, "forget activations and compute them again in the backward pass: less memory"
    )
    cuda_graph: bool = setting(
        False,
        "record a step on the GPU once and start it as a whole from then on, with kernels that do "
        "the networks' elementwise work in fewer passes; for one worker with a GPU",
    )

    def check(self, device: torch.device) -> None:
        """Raises SettingsError where ``device`` can't do what is asked for."""
        if self.cuda_graph and device.type != "cuda":
            raise SettingsError(
                f"compute.cuda_graph records steps on a GPU, and this trains on the {device.type}; "
                "set it to false"
            )


def prepare(modules: Iterable[nn.Module], compute: ComputeSettings) -> None:
    """Lays out, marks and compiles the networks in ``modules``."""
    modules = list(modules)
    if compute.channels_last:
        for module in modules:
            module.to(memory_format=torch.channels_last)
    if compute.recompute:
        for part in _parts(modules, RECOMPUTABLE):
            part.recompute = True
    if compute.cuda_graph:
        # Without a recording, starting Triton's kernels takes longer than they save.
        for part in _parts(modules, FUSABLE):
            part.fused = True
    if compute.compile:
        # What has kernels of its own is faster by them.
        _compile(_parts(modules, SwinBlock) if compute.cuda_graph else _compilable(modules))


def autocast(compute: ComputeSettings, device: torch.device) -> torch.autocast:
    """For forward passes: bfloat16 where ``compute`` asks for it."""
    return torch.autocast(
        device.type,
        torch.bfloat16,
        enabled=compute.dtype == BFLOAT16,
        # A narrowed weight that was kept from before would not be narrowed again by a recording.
        cache_enabled=not compute.cuda_graph,
    )


def flush_denormals() -> None:
    """Numbers below 1.2e-38 are taken as zero from here on, by this thread and those it starts.

    CPUs compute with such numbers, which windows cut off by the attention's mask are full of
    (exp(-100)), a hundred times slower. PyTorch shares work out to threads that keep the mode in
    which they were started: call it before a thread's first large operation.
    """
    torch.set_flush_denormal(True)


@contextmanager
def tensor_float_32(compute: ComputeSettings, device: torch.device) -> Iterator[None]:
    """For whole steps: TensorFloat-32 exactly where ``compute`` asks for it."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    # Set in both cases: cuDNN's own default is TF32, which is not what float32 says.
    matmul.allow_tf32 = cudnn.allow_tf32 = compute.dtype == TF32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _parts(
    modules: Iterable[nn.Module], kinds: type[nn.Module] | tuple[type[nn.Module], ...]
) -> Iterator[Any]:
    for module in modules:
        yield from (part for part in module.modules() if isinstance(part, kinds))


def _compilable(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The large parts, since stages call those of a network one by one (``encode``, ``decode``);
    a network without such parts whole."""
    for module in modules:
        parts = list(_parts([module], (Encoder, Decoder, SwinBlock)))
        yield from parts or [module]


def _compile(parts: Iterable[nn.Module]) -> None:
    """Compiles ``parts`` in place, which leaves the names of the state dict alone.

    Swin blocks are compiled one by one: they are all alike, and what was made for the first two
    serves all.
    """
    import torch._dynamo

    # All parts share one piece of code as PyTorch sees it, and it would give up after the eighth.
    torch._dynamo.config.cache_size_limit = MOST_COMPILATIONS
    for part in parts:
        part.compile(dynamic=False)
