"""State dicts in the authors' names and ours: exactly their keys, and nothing lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets import (
    QDMR,
    VQGAN,
    DiscriminatorSettings,
    NetworkSettings,
    SemanticHead,
    UNetDiscriminator,
)
from qdmr_ray.nets.adapter import KINDS, from_authors, to_authors
from qdmr_ray.nets.swin import relative_position_index, shift_mask
from qdmr_ray.nets.vgg import VGG19Features

GOLDEN_KEYS = json.loads(
    (Path(__file__).parents[1] / "golden" / "state_dict_keys.json").read_text()
)
CONSTANTS = ("relative_position_index", "attn_mask", "mean", "std")


def built(kind: str) -> dict[str, Tensor]:
    """Our state dict of a full-size network, without numbers."""
    with torch.device("meta"):
        if kind in ("qdmr_base", "qdmr_uda"):
            return QDMR(NetworkSettings()).state_dict()
        if kind.endswith("discriminator"):
            channels = 3 if kind == "image_discriminator" else 256
            return UNetDiscriminator(channels, DiscriminatorSettings()).state_dict()
        parts: dict[str, nn.Module] = {"": VQGAN(NetworkSettings())}
        if kind == "vqgan":
            parts |= {"semantic.": SemanticHead(512), "vgg.": VGG19Features()}
        return {
            f"{prefix}{name}": value
            for prefix, module in parts.items()
            for name, value in module.state_dict().items()
        }


def numbered(shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each entry filled with a number of its own, so that mixing two up shows."""
    return {
        name: torch.full(value.shape, float(number), dtype=value.dtype)
        for number, (name, value) in enumerate(shapes.items())
    }


def is_constant(key: str) -> bool:
    return key.endswith(CONSTANTS)


@pytest.mark.parametrize("kind", KINDS)
def test_exports_exactly_the_authors_keys_shapes_and_types(kind: str) -> None:
    exported = to_authors(kind, built(kind))

    found = {
        key: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in exported.items()
    }
    assert found == {key: [shape, dtype] for key, shape, dtype in GOLDEN_KEYS[kind]}


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_changes_no_bit(kind: str) -> None:
    ours = numbered(built(kind))

    back = from_authors(kind, to_authors(kind, ours))

    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], value) for name, value in ours.items())


@pytest.mark.parametrize("kind", KINDS)
def test_back_and_there_changes_no_bit(kind: str) -> None:
    shapes = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, shape, dtype in GOLDEN_KEYS[kind]
        if not is_constant(key)
    }
    theirs = numbered(shapes)

    again = to_authors(kind, from_authors(kind, theirs))

    assert {key for key in again if not is_constant(key)} == theirs.keys()
    assert all(torch.equal(again[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("kind", ["qdmr_base", "qdmr_uda"])
def test_exported_swin_constants(kind: str) -> None:
    exported = to_authors(kind, built(kind))
    group = "swin_block.swin_blks.2.residual_group.blocks"

    index = exported[f"{group}.4.attn.relative_position_index"]
    assert torch.equal(index, relative_position_index(8))
    assert torch.equal(exported[f"{group}.5.attn_mask"], shift_mask(32, 32, 8, 4))
    assert f"{group}.4.attn_mask" not in exported


def test_exported_imagenet_constants() -> None:
    exported = to_authors("vqgan", built("vqgan"))
    mean, std = (exported[f"vgg_feat_extractor.{name}"].flatten() for name in ("mean", "std"))
    torch.testing.assert_close(mean, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(std, torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize("kind", ["vqgan", "qdmr_base"])
def test_constants_are_ignored_on_import(kind: str) -> None:
    theirs = to_authors(kind, numbered(built(kind)))
    constants = [key for key in theirs if is_constant(key)]
    changed = theirs | {key: torch.zeros(1) for key in constants}
    without = {key: value for key, value in theirs.items() if key not in constants}

    assert constants
    imported = [from_authors(kind, state) for state in (theirs, changed, without)]
    for other in imported[1:]:
        assert other.keys() == imported[0].keys()
        assert all(torch.equal(other[name], value) for name, value in imported[0].items())


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("s2t", "nonsense.weight"),
        ("s2t", "conv_semantic.0.weight"),
        ("s2t", "cac_encoder.in_conv.weight"),
        ("qdmr_base", "multiscale_encoder.in_conv.weight"),
        ("image_discriminator", "conv10.weight"),
        ("image_discriminator", "conv0.weight_orig"),
        ("vqgan", "multiscale_encoder.blocks.0.1.conv.9.weight"),
    ],
)
def test_an_unknown_key_is_named_on_import(kind: str, key: str) -> None:
    with pytest.raises(QdmrError, match=rf"'{key}' does not belong to a {kind}"):
        from_authors(kind, {key: torch.zeros(1)})


@pytest.mark.parametrize(
    ("kind", "key"), [("s2t", "semantic.conv.weight"), ("qdmr_uda", "encoder.second.weight")]
)
def test_an_unknown_key_is_named_on_export(kind: str, key: str) -> None:
    with pytest.raises(QdmrError, match=rf"'{key}' does not belong to a {kind}"):
        to_authors(kind, {key: torch.zeros(1)})


@pytest.mark.parametrize("convert", [from_authors, to_authors])
def test_an_unknown_kind_lists_the_known_ones(convert: object) -> None:
    with pytest.raises(QdmrError, match=r"'qdmr'.*vqgan, s2t, qdmr_base"):
        convert("qdmr", {"encoder.first.weight": torch.zeros(1)})  # type: ignore[operator]
