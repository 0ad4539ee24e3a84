"""Adversarial terms on logits that can be reckoned by hand."""

from __future__ import annotations

import pytest
import torch

from qdmr_ray.losses import GAN_LOSSES, discriminator_gan_loss, generator_gan_loss, squared_error_to

# One logit beyond the margin on each side, one inside it on each side.
LOGITS = torch.tensor([[[[-2.0, -0.5], [0.25, 3.0]]]])


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("hinge", -(-2 - 0.5 + 0.25 + 3) / 4),
        ("lsgan", (3**2 + 1.5**2 + 0.75**2 + 2**2) / 4),
    ],
)
def test_generator(kind: str, wanted: float) -> None:
    assert generator_gan_loss(kind, LOGITS).item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("kind", "real", "wanted"),
    [
        ("hinge", True, (3 + 1.5 + 0.75 + 0) / 4),
        ("hinge", False, (0 + 0.5 + 1.25 + 4) / 4),
        ("lsgan", True, (3**2 + 1.5**2 + 0.75**2 + 2**2) / 4),
        ("lsgan", False, (2**2 + 0.5**2 + 0.25**2 + 3**2) / 4),
    ],
)
def test_discriminator(kind: str, real: bool, wanted: float) -> None:
    assert discriminator_gan_loss(kind, LOGITS, real=real).item() == pytest.approx(wanted)


def test_beyond_the_hinge_there_is_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    discriminator_gan_loss("hinge", logits, real=True).backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [-0.25, -0.25, -0.25, 0.0]


@pytest.mark.parametrize(
    ("label", "wanted"), [(0.5, (6.25 + 1 + 0.0625 + 6.25) / 4), (0.0, 3.328125)]
)
def test_squared_error_to_a_label(label: float, wanted: float) -> None:
    assert squared_error_to(LOGITS, label).item() == pytest.approx(wanted)


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_terms_are_means_however_many_logits_there_are(kind: str) -> None:
    many = LOGITS.repeat(3, 1, 2, 2)
    for loss in (
        lambda x: generator_gan_loss(kind, x),
        lambda x: discriminator_gan_loss(kind, x, real=True),
        lambda x: discriminator_gan_loss(kind, x, real=False),
    ):
        assert loss(many).shape == ()
        assert loss(many).item() == pytest.approx(loss(LOGITS).item())
