"""The arithmetic of a stage: precision, memory layout, compilation, recomputation.

Plain float32 has the method's numbers; each other choice trades a little of their last digits, or
some arithmetic, for speed or memory.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qdmr_ray.errors import SettingsError
from qdmr_ray.nets.blocks import Decoder, Encoder, ResBlock
from qdmr_ray.nets.discriminator import SpectralConv2d
from qdmr_ray.nets.fused import norm as fused_norm
from qdmr_ray.nets.lpips import LPIPSDistance, LPIPSFeatures
from qdmr_ray.nets.swin import SwinBlock, SwinBottleneck
from qdmr_ray.settings import Settings, setting

FLOAT32, TF32, BFLOAT16 = "float32", "tf32", "bfloat16"
DTYPES = (FLOAT32, TF32, BFLOAT16)
MOST_COMPILATIONS = 64
# Networks whose activations can be computed a second time instead of being kept.
RECOMPUTABLE = (Encoder, Decoder, SwinBottleneck)
# What has kernels of its own on GPUs for all that PyTorch's compiler could fuse.
WHOLLY_FUSABLE = (ResBlock, SpectralConv2d)
# Swin blocks have some for their attention alone, which the compiler calls as they are.
FUSABLE = (*WHOLLY_FUSABLE, SwinBlock)
# What stages call of a network instead of the whole, and blocks that are compiled one by one: all
# Swin blocks are alike, and the first two's code serves all.
COMPILED_APART = (Encoder, Decoder, SwinBlock, LPIPSFeatures, LPIPSDistance)


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
        "torch.compile of encoders, decoders, Swin blocks, discriminators, LPIPS and the semantic "
        "term's VGG19; with cuda_graph of those that have no kernels of their own",
    )
    channels_last: bool = setting(True, "images with channels innermost in memory")
    recompute: bool = setting(
        False, "forget activations and compute them again in the backward pass: less memory"
    )
    cuda_graph: bool = setting(
        False,
        "record a step on the GPU once, its exchange of gradients included, and start it as a "
        "whole from then on",
    )
    fused_kernels: bool | None = setting(
        None,
        "Triton kernels that do the networks' elementwise work and attention in fewer passes; "
        "when not set, wherever they fit: GPUs with Triton; channels_last, at most 1024 channels; "
        "windows of 4 or 8, heads of 16, 32, 64 or 128 channels",
    )
    gradients: str = setting(
        FLOAT32,
        "what several workers exchange gradients in: float32, as they are; bfloat16: half the "
        "bytes, for slow networks between nodes",
        choices=(FLOAT32, BFLOAT16),
    )

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of images that ``channels_last`` stands for."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def check(self, device: torch.device) -> None:
        """Raises SettingsError where ``device`` lacks what the settings ask for."""
        if self.cuda_graph and device.type != "cuda":
            raise SettingsError(
                f"compute.cuda_graph records steps on a GPU, and this trains on the {device.type}; "
                "set it to false"
            )
        if self.fused_kernels and not (device.type == "cuda" and fused_norm.kernels):
            raise SettingsError(
                "compute.fused_kernels=true needs a GPU and a PyTorch with Triton, and this trains "
                f"on the {device.type}{'' if fused_norm.kernels else ' without Triton'}; leave it "
                "unset"
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
    if compute.fused_kernels is not False:
        # Each of these asks whether the images of a call fit.
        for part in _parts(modules, FUSABLE):
            part.fused = True
    if compute.compile:
        from torch._dynamo import config as dynamo

        # PyTorch sees one piece of code in all submodules and would give up after the eighth.
        dynamo.cache_size_limit = MOST_COMPILATIONS
        for part in _compilable(modules, compute):
            # In place, which keeps the state dict's names.
            part.compile(dynamic=False)


def autocast(compute: ComputeSettings, device: torch.device) -> torch.autocast:
    """Returns the context of forward passes: bfloat16 where ``compute`` asks for it."""
    return torch.autocast(
        device.type,
        torch.bfloat16,
        enabled=compute.dtype == BFLOAT16,
        # A recording would not narrow a weight again whose narrow copy had been kept before.
        cache_enabled=not compute.cuda_graph,
    )


def flush_denormals() -> None:
    """Makes this thread, and those that it starts, take numbers below 1.2e-38 as zero from now on.

    CPUs compute a hundred times slower with such numbers, which fill the windows that the
    attention's mask cuts off (exp(-100)). PyTorch's worker threads keep the mode in which they were
    started, so this call must precede a thread's first large operation.
    """
    torch.set_flush_denormal(True)


@contextmanager
def tensor_float_32(compute: ComputeSettings, device: torch.device) -> Iterator[None]:
    """Allows TensorFloat-32 for a whole step exactly where ``compute`` asks for it."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    # Set in both cases: cuDNN's own default is TF32, which "float32" does not mean.
    matmul.allow_tf32 = cudnn.allow_tf32 = compute.dtype == TF32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _parts(modules: Iterable[nn.Module], kinds: Any) -> Iterator[Any]:
    for module in modules:
        yield from (part for part in module.modules() if isinstance(part, kinds))


def _compilable(modules: Iterable[nn.Module], compute: ComputeSettings) -> Iterator[nn.Module]:
    """Yields those submodules that are compiled apart, or the whole of a network that has none. In
    a recording, what its own kernels fuse is faster by these than compiled."""
    fused = compute.cuda_graph and compute.channels_last and compute.fused_kernels is not False
    for module in modules:
        for part in list(_parts([module], COMPILED_APART)) or [module]:
            if not (fused and any(_parts([part], WHOLLY_FUSABLE))):
                yield part
