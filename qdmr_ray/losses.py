"""Adversarial loss terms in pure PyTorch; L1 is PyTorch's own, LPIPS is in ``nets.lpips``."""

from torch import Tensor
from torch.nn.functional import relu

GAN_LOSSES = ("hinge", "lsgan")


def generator_gan_loss(kind: str, logits: Tensor) -> Tensor:
    """Returns the generator's loss, a scalar, from the discriminator's ``logits`` on its outputs:
    ``hinge`` is ``-D(fake)``, ``lsgan`` is ``(D(fake) - 1)^2``, as means over all logits."""
    return -logits.mean() if kind == "hinge" else squared_error_to(logits, 1.0)


def discriminator_gan_loss(kind: str, logits: Tensor, *, real: bool) -> Tensor:
    """Returns the discriminator's loss, a scalar, for ``logits`` on real or fake images: ``hinge``
    is ``relu(1 - D(real))`` or ``relu(1 + D(fake))``, ``lsgan`` the squared error to 1 or 0, as
    means over all logits."""
    if kind == "hinge":
        return relu(1 - logits if real else 1 + logits).mean()
    return squared_error_to(logits, 1.0 if real else 0.0)


def squared_error_to(logits: Tensor, label: float) -> Tensor:
    """Returns the mean squared error of logits to one label; the feature alignment's is 0.5."""
    return (logits - label).square().mean()
