"""The networks' sizes, shapes and what may train in them. The golden figures test the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from qdmr_ray.nets import (
    QDMR,
    VQGAN,
    DiscriminatorSettings,
    NetworkSettings,
    SemanticHead,
    UNetDiscriminator,
)
from qdmr_ray.nets.blocks import Decoder, Encoder, FeatureFusion, ResBlock, group_norm
from qdmr_ray.nets.qdmr import SourceOnlyQDMR

FULL = NetworkSettings()


Network = TypeVar("Network", bound=nn.Module)


def on_meta(build: Callable[..., Network], *arguments: object) -> Network:
    """A network with shapes but without numbers, built at once whatever its size."""
    with torch.device("meta"):
        return build(*arguments)


def largest_gradient(network: nn.Module, name: str) -> float:
    gradient = network.get_parameter(name).grad
    return 0.0 if gradient is None else gradient.abs().max().item()


def meta_image(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


@pytest.mark.parametrize(
    ("network", "millions"),
    [
        (on_meta(VQGAN, FULL), 12.18),
        (on_meta(QDMR, FULL), 33.80),
        (on_meta(UNetDiscriminator, 3, DiscriminatorSettings()), 4.38),
        (on_meta(UNetDiscriminator, 256, DiscriminatorSettings()), 4.52),
        (on_meta(SemanticHead, FULL.code_dim), 0.26),
    ],
    ids=["vqgan", "qdmr", "image_discriminator", "feature_discriminator", "semantic_head"],
)
def test_full_networks_have_the_papers_sizes(network: nn.Module, millions: float) -> None:
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(256, 32), (64, 32), (32, 32), (48, 24), (40, 20), (24, 24), (8, 8), (37, 1), (66, 22)],
)
def test_group_norm_takes_the_largest_divisor_up_to_32(channels: int, groups: int) -> None:
    norm = group_norm(channels)
    assert (norm.num_groups, norm.num_channels, norm.eps) == (groups, channels, 1e-6)


def test_residual_block_is_the_methods_formula() -> None:
    block = ResBlock(24).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64)

    def half(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
        groups = x.view(2, 24, 1, 5, 7)  # 24 channels make 24 groups of one
        mean = groups.mean(dim=(2, 3, 4), keepdim=True)
        variance = groups.var(dim=(2, 3, 4), keepdim=True, unbiased=False)
        normed = ((groups - mean) / (variance + 1e-6).sqrt()).view_as(x)
        normed = normed * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        return nn.functional.conv2d(
            normed * torch.sigmoid(normed), conv.weight, conv.bias, padding=1
        )

    wanted = x + half(half(x, block.norm1, block.conv1), block.norm2, block.conv2)
    torch.testing.assert_close(block(x), wanted)


def test_encoder_of_a_256_image_passes_through_255_then_128() -> None:
    encoder = on_meta(Encoder, FULL.widths, FULL.residual_blocks)
    sides: list[tuple[int, ...]] = []
    for layer in (encoder.first, *encoder.levels):
        layer.register_forward_hook(lambda _, __, out: sides.append(tuple(out.shape[1:])))

    encoder(meta_image(1, 3, 256, 256))

    assert sides == [(64, 255, 255), (128, 128, 128), (256, 64, 64), (256, 32, 32)]


def test_decoder_doubles_back_to_the_image() -> None:
    decoder = on_meta(Decoder, FULL.widths, FULL.residual_blocks)
    sides: list[tuple[int, ...]] = []
    for layer in (*decoder.levels, decoder.last):
        layer.register_forward_hook(lambda _, __, out: sides.append(tuple(out.shape[1:])))

    decoder(meta_image(1, 256, 32, 32))

    assert sides == [(256, 64, 64), (128, 128, 128), (64, 256, 256), (3, 256, 256)]


@pytest.mark.parametrize("sides", [(8, 8), (16, 24)])
def test_output_shapes(
    sides: tuple[int, int], tiny_network: NetworkSettings, tiny_discriminator: DiscriminatorSettings
) -> None:
    height, width = sides
    x = torch.rand(2, 3, height, width)
    vqgan, restored = VQGAN(tiny_network)(x), QDMR(tiny_network)(x)
    coarse = (2, height // 2, width // 2)

    assert vqgan.image.shape == restored.image.shape == x.shape
    assert vqgan.code.shape == (2, 8, *coarse[1:])
    assert restored.features.shape == (2, 16, *coarse[1:])
    for out in (vqgan, restored):
        assert out.indices.shape == coarse
        assert out.indices.dtype == torch.int64
        assert out.codebook_loss.shape == (2,)
    assert UNetDiscriminator(3, tiny_discriminator)(x).shape == (2, 1, height, width)
    assert SemanticHead(8)(vqgan.code).shape == (2, 512, *coarse[1:])


def test_what_a_network_says_about_image_sides_holds(tiny_network: NetworkSettings) -> None:
    assert (FULL.downsampling, FULL.multiple) == (8, 64)
    assert (VQGAN(tiny_network).multiple, QDMR(tiny_network).multiple) == (2, 8)
    # The multiples suffice, and a QDMR network can't do with less.
    VQGAN(tiny_network)(torch.rand(1, 3, 2, 6))
    QDMR(tiny_network)(torch.rand(1, 3, 8, 16))
    with pytest.raises(RuntimeError):
        QDMR(tiny_network)(torch.rand(1, 3, 8, 12))


@pytest.mark.parametrize("build", [VQGAN, QDMR])
def test_encoder_sends_no_gradient_to_its_input(
    build: type[VQGAN] | type[QDMR], tiny_network: NetworkSettings
) -> None:
    network = build(tiny_network)
    x = torch.rand(1, 3, 8, 8, requires_grad=True)

    out = network(x)
    (out.image.square().mean() + out.codebook_loss.sum()).backward()

    assert x.grad is None
    assert largest_gradient(network, "encoder.first.weight") > 0


def test_codebook_of_the_restoration_network_is_frozen_and_its_layers_train(
    tiny_network: NetworkSettings,
) -> None:
    vqgan, network = VQGAN(tiny_network), QDMR(tiny_network)
    taken = ("quantizer.codes", "before_quant.weight", "before_quant.bias", "after_quant.weight")
    network.take_codebook(vqgan)
    for name in taken:
        assert torch.equal(network.get_parameter(name), vqgan.get_parameter(name))
    assert not torch.equal(network.encoder.first.weight, vqgan.encoder.first.weight)

    out = network(torch.rand(2, 3, 8, 8))
    (out.image.square().mean() + out.codebook_loss.sum()).backward()

    still = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert still == ["quantizer.codes"]
    assert not network.quantizer.codes.requires_grad
    for name in taken[1:]:
        assert largest_gradient(network, name) > 0
    # The VQGAN keeps its own: training the restoration network leaves it alone.
    with torch.no_grad():
        network.before_quant.weight.add_(1)
    assert not torch.equal(network.before_quant.weight, vqgan.before_quant.weight)
    assert vqgan.quantizer.codes.requires_grad


def test_fusion_is_the_methods_formula() -> None:
    fusion = FeatureFusion(4)
    x, q = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)

    def branch(layers: nn.Sequential) -> Tensor:
        first, last = (layers.get_parameter(f"{i}.weight")[:, :, 0, 0] for i in (0, 2))
        hidden = torch.einsum("oi,bihw->bohw", first, q)
        hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
        return torch.einsum("oi,bihw->bohw", last, hidden)

    torch.testing.assert_close(fusion(x, q), x * branch(fusion.gamma) + branch(fusion.beta) + x)
    assert len(list(fusion.parameters())) == 4  # no bias


def test_without_fusion_the_codebook_acts_through_its_loss_alone(
    tiny_network: NetworkSettings,
) -> None:
    network = QDMR(replace(tiny_network, fusion=False))
    network.take_codebook(VQGAN(tiny_network))
    x = torch.rand(2, 3, 8, 16)
    out = network(x)
    expected = network.decoder(network.bottleneck(network.encoder(x)))
    assert torch.equal(out.image, expected)
    (out.image.square().mean() + out.codebook_loss.sum()).backward()
    # No weight is idle: workers would exchange its gradient for nothing.
    still = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert still == ["quantizer.codes"]


def test_global_residual_starts_as_the_identity_and_trains(tiny_network: NetworkSettings) -> None:
    network = QDMR(replace(tiny_network, global_residual=True))
    x = torch.rand(2, 3, 8, 16)

    image = network(x).image
    assert torch.equal(image, x)
    assert not torch.equal(QDMR(tiny_network)(x).image, x)

    (image - torch.rand_like(x)).abs().mean().backward()
    assert largest_gradient(network, "decoder.last.weight") > 0
    with torch.no_grad():
        network.get_parameter("decoder.last.bias").add_(0.25)
    torch.testing.assert_close(network(x).image, x + 0.25)


def test_global_residual_leaves_the_vqgan_alone(tiny_network: NetworkSettings) -> None:
    extended = VQGAN(replace(tiny_network, global_residual=True))
    extended.load_state_dict(VQGAN(tiny_network).state_dict())
    assert extended.decoder.last.weight.abs().max() > 0


def test_without_domain_mixing_there_is_no_codebook(tiny_network: NetworkSettings) -> None:
    mixing = {name.split(".")[0] for name in QDMR(tiny_network).state_dict()}
    network = SourceOnlyQDMR(tiny_network)
    plain = {name.split(".")[0] for name in network.state_dict()}
    assert mixing - plain == {"before_quant", "quantizer", "after_quant", "fusion"}
    assert plain == {"encoder", "bottleneck", "decoder"}

    out = network(torch.rand(1, 3, 8, 8))
    assert (out.indices, out.codebook_loss) == (None, None)
    assert out.image.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("build", [VQGAN, QDMR])
def test_an_image_does_not_feel_its_neighbours_in_the_batch(
    build: type[VQGAN] | type[QDMR], tiny_network: NetworkSettings
) -> None:
    network = build(tiny_network).double()
    inputs = [torch.rand(3, 3, 16, 8, dtype=torch.float64)]
    if build is QDMR:
        # The codes that guide it.
        inputs.append(torch.randint(tiny_network.codebook_size, (3, 8, 4)))

    together = network(*inputs)
    alone = [network(*(one[None] for one in sample)) for sample in zip(*inputs, strict=True)]

    for name, value in together._asdict().items():
        parts = torch.cat([getattr(out, name) for out in alone])
        torch.testing.assert_close(value, parts, rtol=1e-12, atol=1e-12, msg=name)


def test_codebook_atlas_decodes_each_code_as_a_map_of_its_own(
    tiny_network: NetworkSettings,
) -> None:
    network = VQGAN(tiny_network).double()

    atlas = network.decode_codes()
    assert atlas.shape == (16, 3, 4, 4)
    some = network.decode_codes(torch.tensor([5, 2]))
    torch.testing.assert_close(some, atlas[[5, 2]])
    codes = network.quantizer.codes[5].view(1, -1, 1, 1).expand(1, -1, 2, 2)
    torch.testing.assert_close(some[:1], network.decoder(network.after_quant(codes)))
