"""Spectral norm by batched passes equals separate forwards, and PyTorch's own spectral norm."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from qdmr_ray.nets import DiscriminatorSettings, UNetDiscriminator
from qdmr_ray.nets.discriminator import SpectralConv2d

PASSES = [1, 2, 3]


def normed(network: nn.Module) -> dict[str, Tensor]:
    """The singular vectors that a training-mode pass advances."""
    return {name: value.clone() for name, value in network.named_buffers()}


@pytest.fixture
def discriminator(tiny_discriminator: DiscriminatorSettings) -> UNetDiscriminator:
    return UNetDiscriminator(3, tiny_discriminator).double()


@pytest.mark.parametrize("passes", PASSES)
def test_passes_of_a_batch_equal_forwards_of_their_own(
    passes: int, discriminator: UNetDiscriminator
) -> None:
    separate = copy.deepcopy(discriminator)
    x = torch.rand(passes * 2, 3, 8, 16, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(passes * 2, 1, 8, 16, dtype=torch.float64)

    batched = discriminator(x, passes=passes)
    one_by_one = torch.cat([separate(part) for part in y.chunk(passes)])
    for logits in (batched, one_by_one):
        (logits * weight).sum().backward()

    torch.testing.assert_close(batched, one_by_one)
    torch.testing.assert_close(x.grad, y.grad)
    for (name, mine), theirs in zip(
        discriminator.named_parameters(), separate.parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)
    torch.testing.assert_close(normed(discriminator), normed(separate), rtol=0, atol=0)


def test_each_pass_has_an_estimate_of_its_own(discriminator: UNetDiscriminator) -> None:
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    first, second = discriminator(torch.cat([x, x]), passes=2)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("passes", PASSES)
def test_agrees_with_pytorchs_spectral_norm(passes: int) -> None:
    ours = SpectralConv2d(3, 5, 4, stride=2).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = nn.utils.spectral_norm(nn.Conv2d(3, 5, 4, 2, padding=1, bias=False).double())
    with torch.no_grad():
        theirs.get_parameter("weight_orig").copy_(ours.weight)
        theirs.get_buffer("weight_u").copy_(ours.u)
        theirs.get_buffer("weight_v").copy_(ours.v)
    x = torch.randn(passes * 2, 3, 8, 8, dtype=torch.float64)

    found = ours(x, passes)
    wanted = torch.cat([theirs(part) for part in x.chunk(passes)])
    for out in (found, wanted):
        out.square().sum().backward()

    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ours.weight.grad, theirs.get_parameter("weight_orig").grad)
    torch.testing.assert_close(ours.u, theirs.get_buffer("weight_u"))
    torch.testing.assert_close(ours.v, theirs.get_buffer("weight_v"))


def test_eval_mode_does_not_advance(discriminator: UNetDiscriminator) -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    before = normed(discriminator)

    discriminator.eval()
    logits = discriminator(x)
    assert torch.equal(discriminator(x), logits)
    torch.testing.assert_close(discriminator(x, passes=2), logits)
    assert all(torch.equal(before[name], value) for name, value in normed(discriminator).items())

    discriminator.train()
    discriminator(x)
    assert not any(
        torch.equal(before[name], value) for name, value in normed(discriminator).items()
    )


def test_estimate_converges_to_the_largest_singular_value() -> None:
    conv = SpectralConv2d(3, 6, 3).double()
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    largest = torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)
    wanted = nn.functional.conv2d(x, conv.weight, padding=1) / largest

    with torch.no_grad():
        assert not torch.allclose(conv(x), wanted, rtol=1e-6)
        for _ in range(1000):
            conv(x)

    torch.testing.assert_close(conv(x), wanted, rtol=1e-9, atol=1e-9)


def test_which_layers_have_norm_and_bias(discriminator: UNetDiscriminator) -> None:
    leaves: dict[str, set[str]] = {}
    for name in discriminator.state_dict():
        layer, leaf = name.split(".")
        leaves.setdefault(layer, set()).add(leaf)
    spectral = {f"conv{i}": {"weight", "u", "v"} for i in range(1, 9)}
    assert leaves == {"conv0": {"weight", "bias"}, **spectral, "conv9": {"weight", "bias"}}


def test_logits_are_the_methods_network(discriminator: UNetDiscriminator) -> None:
    x = torch.rand(2, 3, 16, 8, dtype=torch.float64)
    state = discriminator.eval().state_dict()

    def leaky(h: Tensor) -> Tensor:
        return torch.where(h > 0, h, 0.2 * h)

    def normed_conv(number: int, h: Tensor, stride: int = 1) -> Tensor:
        weight, u, v = (state[f"conv{number}.{name}"] for name in ("weight", "u", "v"))
        weight = weight / (u @ weight.flatten(1) @ v)
        return leaky(nn.functional.conv2d(h, weight, stride=stride, padding=1))

    def doubled(h: Tensor) -> Tensor:
        sides = (2 * h.shape[2], 2 * h.shape[3])
        return nn.functional.interpolate(h, sides, mode="bilinear", align_corners=False)

    levels = [leaky(discriminator.conv0(x))]
    for number in (1, 2, 3):
        levels.append(normed_conv(number, levels[-1], stride=2))
    h = levels[3]
    for number, level in ((4, 2), (5, 1), (6, 0)):
        h = normed_conv(number, doubled(h)) + levels[level]
    h = normed_conv(8, normed_conv(7, h))
    torch.testing.assert_close(discriminator(x), discriminator.conv9(h))
