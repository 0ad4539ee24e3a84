"""The plain build of a stage, the baseline of the bench: one forward pass per image set."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qdmr_ray.nets import QDMR
from qdmr_ray.nets.lpips import LPIPS
from qdmr_ray.stages import Stage


def one_set_at_a_time(stage: Stage, batch: int) -> None:
    """Makes every network of ``stage`` run once for each set of ``batch`` images.

    The losses stay the same; a stage otherwise joins its sets (real and fake, source and target).
    """
    for module in [*stage.generator.networks.values(), *stage.auxiliary]:
        if isinstance(module, LPIPS):
            module = module.features
        # A stage calls a QDMR network's submodules one by one.
        for name in ("encode", "decode") if isinstance(module, QDMR) else ("forward",):
            setattr(module, name, _each(getattr(module, name), batch))
    for discriminator in stage.discriminators.networks.values():
        discriminator.forward = _each_pass(discriminator.forward)


def _each(forward: Callable[..., Any], batch: int) -> Callable[..., Any]:
    def run(*images: Tensor | None) -> Any:
        # Stages without guidance give no codes.
        sets = zip(*(x.split(batch) for x in images if x is not None), strict=True)
        return _joined([forward(*one) for one in sets])

    return run


def _each_pass(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, passes: int = 1) -> Tensor:
        return torch.cat([forward(one) for one in x.chunk(passes)])

    return run


def _joined(outputs: list[Any]) -> Any:
    """Joins tensors, or lists and named tuples of tensors and None, along the batch."""
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(outputs)
    joined = [_joined(list(values)) for values in zip(*outputs, strict=True)]
    return joined if isinstance(first, list) else type(first)(*joined)
