"""``quantized, indices, loss = quantizer(z)``: METHOD.md's quantizer against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qdmr_ray.nets import quantizer as module
from qdmr_ray.nets.quantizer import VectorQuantizer

BETA = 0.25


def quantizer(size: int = 16, dim: int = 8, dtype: torch.dtype = torch.float64) -> VectorQuantizer:
    """With codes as far apart as features are, so that every one is somebody's nearest."""
    made = VectorQuantizer(size, dim, BETA)
    torch.nn.init.normal_(made.codes)
    return made.to(dtype)


def distances(z: Tensor, codes: Tensor) -> Tensor:
    """Squared L2 distance (B, h, w, K) of every position to every code, by its definition."""
    rows = z.detach().double().permute(0, 2, 3, 1)
    return (rows[..., None, :] - codes.detach().double()).square().sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 8, 4, 4), (3, 8, 5, 2)])
def test_contract(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    vq = quantizer(dtype=dtype)
    z = torch.randn(shape).to(dtype)

    quantized, indices, loss = vq(z)

    batch, _, height, width = shape
    assert quantized.shape == shape
    # Under autocast and in bfloat16, losses and codes stay in float32.
    assert quantized.dtype == loss.dtype == torch.promote_types(dtype, torch.float32)
    assert indices.shape == (batch, height, width)
    assert indices.dtype == torch.int64
    assert loss.shape == (batch,)
    assert torch.equal(indices, distances(z, vq.codes).argmin(-1))
    codes = vq.codes[indices].permute(0, 3, 1, 2)
    assert torch.equal(vq.lookup(indices), codes)
    assert all(map(torch.equal, vq.quantize(z), (quantized, indices)))
    rounding = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(quantized, codes.to(quantized.dtype), rtol=rounding, atol=rounding)
    wanted = (1 + BETA) * (codes - z).double().square().mean((1, 2, 3))
    torch.testing.assert_close(loss.double(), wanted, rtol=rounding, atol=rounding)


def test_the_loss_is_each_images_own() -> None:
    vq, z = quantizer(), torch.randn(3, 8, 4, 4, dtype=torch.float64)

    loss = vq(z)[2]

    for image, value in zip(z, loss, strict=True):
        squares = distances(image[None], vq.codes).amin(-1)
        assert value.item() == pytest.approx((1 + BETA) * squares.sum().item() / (8 * 4 * 4))
    assert len({round(value, 9) for value in loss.tolist()}) == 3


def test_gradients_of_the_loss_are_those_of_its_two_terms() -> None:
    vq = quantizer()
    z = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)

    _, indices, loss = vq(z)
    loss.sum().backward()

    codes = vq.codes.detach()[indices].permute(0, 3, 1, 2)
    difference = 2 * (codes - z.detach()) / z[0].numel()
    torch.testing.assert_close(z.grad, -BETA * difference)
    wanted = torch.zeros_like(vq.codes)
    wanted.index_add_(0, indices.flatten(), difference.permute(0, 2, 3, 1).reshape(-1, 8))
    torch.testing.assert_close(vq.codes.grad, wanted)


def test_quantized_sends_its_gradient_straight_through() -> None:
    vq = quantizer()
    z = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(z)

    (vq(z)[0] * weight).sum().backward()

    assert z.grad is not None
    assert torch.equal(z.grad, weight)
    assert vq.codes.grad is None


def test_frozen_codes_take_no_gradient_and_their_input_still_does() -> None:
    vq = quantizer().requires_grad_(False)
    z = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)

    quantized, _, loss = vq(z)
    (quantized.square().sum() + loss.sum()).backward()

    assert vq.codes.grad is None
    assert z.grad is not None
    assert z.grad.abs().min() > 0


def test_guidance_is_the_distance_to_the_wanted_codes_and_to_their_gram_matrix() -> None:
    vq = quantizer(dim=6)
    z = torch.randn(3, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    wanted = torch.randint(16, (3, 4, 5))

    loss = vq.guidance(z, wanted)
    loss.sum().backward()

    assert vq.codes.grad is None
    assert z.grad is not None
    for image, indices, value, gradient in zip(
        z.detach().numpy(), wanted.numpy(), loss.tolist(), z.grad.numpy(), strict=True
    ):
        rows = image.reshape(6, 20).T
        codes = vq.codes.detach().numpy()[indices.ravel()]
        apart = (rows.T @ rows - codes.T @ codes) / 20
        assert value == pytest.approx(
            BETA * np.mean((codes - rows) ** 2) + np.mean(apart**2), rel=1e-12
        )
        # d/dz of the first mean over 6 x 20 elements, and of the second over 6 x 6.
        slope = BETA * 2 * (rows - codes) / (6 * 20) + 4 * rows @ apart / (20 * 6 * 6)
        np.testing.assert_allclose(gradient.reshape(6, 20).T, slope, rtol=1e-10, atol=1e-14)


def test_guidance_vanishes_on_the_wanted_codes_and_stays_in_float32_under_autocast() -> None:
    vq, wanted = quantizer(dtype=torch.float32), torch.randint(16, (2, 3, 3))
    assert vq.guidance(vq.lookup(wanted), wanted).tolist() == [0, 0]

    z = torch.randn(2, 8, 3, 3)
    expected = vq.guidance(z, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        found = vq.guidance(z, wanted)

    assert torch.equal(found, expected)


@pytest.mark.parametrize("rows_at_once", [1, 7, 50, 100])
def test_looking_up_in_chunks_changes_nothing(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vq, z = quantizer(), torch.randn(2, 8, 5, 5, dtype=torch.float64)
    unchunked = vq(z)[1]

    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows_at_once)

    assert torch.equal(vq(z)[1], unchunked)


def test_autocast_picks_the_codes_of_float32() -> None:
    vq = quantizer(size=512, dim=32, dtype=torch.float32)
    z = torch.randn(2, 32, 12, 12)
    wanted = vq(z)[1]

    with torch.autocast("cpu", torch.bfloat16):
        rows = z.permute(0, 2, 3, 1).reshape(-1, 32)
        rounded = (vq.codes.square().sum(1) / 2 - rows @ vq.codes.T).argmin(1).view_as(wanted)
        found = vq(z)[1]

    assert not torch.equal(rounded, wanted), "bfloat16 distances must pick others for this to test"
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("size", [4, 1024])
def test_codes_start_uniform_within_one_over_their_number(size: int) -> None:
    codes = VectorQuantizer(size, 4096 // size * 8, BETA).codes.detach() * size

    assert codes.abs().max() <= 1
    assert codes.min() < -0.99
    assert codes.max() > 0.99
    assert codes.square().mean().item() == pytest.approx(1 / 3, abs=0.02)
