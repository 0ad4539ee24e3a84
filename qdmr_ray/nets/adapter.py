"""Maps state dicts between our names and those of the authors' code, both ways.

``kind`` is one of ``vqgan`` (with semantic head and VGG19, which our names put under ``semantic.``
and ``vgg.``), ``s2t`` (the VQGAN alone), ``qdmr_base``, ``qdmr_uda``, ``image_discriminator`` and
``feature_discriminator``. Every function raises QdmrError for another kind and for a key that no
network of that kind has.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets.swin import relative_position_index, shift_mask
from qdmr_ray.nets.vgg import IMAGENET_MEAN, IMAGENET_STD, LAYERS

# The authors store the shift mask of a 32 x 32 map (256 crop, 1/8) in every second block.
STORED_MASK_SIDE = 32

_RES_BLOCK = {"norm1": "conv.0.norm", "conv1": "conv.2", "norm2": "conv.3.norm", "conv2": "conv.5"}
_SWIN_BLOCK = {
    "norm1": "norm1",
    "attention.bias_table": "attn.relative_position_bias_table",
    "attention.qkv": "attn.qkv",
    "attention.projection": "attn.proj",
    "norm2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
# These keys hold no weights: export writes them, import ignores them.
_CONSTANT = re.compile(r"relative_position_index$|attn_mask$|^vgg_feat_extractor\.(mean|std)$")


def _levels(ours: str, theirs: str) -> list[tuple[str, str]]:
    """Returns rules for the layers of encoder or decoder levels; ``{}`` stands for a number."""
    inner = [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in _RES_BLOCK.items()]
    return [*inner, (ours, theirs)]


_QUANTIZER = [
    ("quantizer.codes", "quantize_group.0.embedding.weight"),
    ("before_quant", "before_quant_group.0"),
    ("after_quant", "after_quant_group.0.conv"),
]
_S2T = [
    ("encoder.first", "multiscale_encoder.in_conv"),
    *_levels("encoder.levels.{}.{}", "multiscale_encoder.blocks.{}.{}"),
    *_levels("decoder.levels.{}.{}", "decoder_group.{}.block.{}"),
    ("decoder.last", "out_conv"),
    *_QUANTIZER,
]
_SWIN = "bottleneck.groups.{}"
_QDMR = [
    ("encoder.first", "cac_encoder.in_conv"),
    *_levels("encoder.levels.{}.{}", "cac_encoder.blocks.{}.{}"),
    *_levels("decoder.levels.{}.{}", "cacdecoder.upsampler.{}.{}"),
    ("decoder.last", "cac_out_conv"),
    *_QUANTIZER,
    ("fusion.gamma.{}", "vqfusion.conv_gamma.{}"),
    ("fusion.beta.{}", "vqfusion.conv_beta.{}"),
    (f"{_SWIN}.conv", "swin_block.swin_blks.{}.conv"),
    *(
        (f"{_SWIN}.blocks.{{}}.{a}", f"swin_block.swin_blks.{{}}.residual_group.blocks.{{}}.{b}")
        for a, b in _SWIN_BLOCK.items()
    ),
]


def _vgg_rules() -> list[tuple[str, str]]:
    rules, index, block, conv = [], 0, 1, 1
    for layer in LAYERS:
        if layer == "pool":
            index, block, conv = index + 1, block + 1, 1
        else:
            theirs = f"vgg_feat_extractor.vgg_net.conv{block}_{conv}"
            rules.append((f"vgg.features.{index}", theirs))
            index, conv = index + 2, conv + 1
    return rules


_SPECTRAL = (("weight", "weight_orig"), ("u", "weight_u"), ("v", "weight_v"))
_DISCRIMINATOR = [
    ("conv0", "conv0"),
    ("conv9", "conv9"),
    *((f"conv{i}.{a}", f"conv{i}.{b}") for i in range(1, 9) for a, b in _SPECTRAL),
]
_RULES = {
    "vqgan": [*_S2T, ("semantic.conv", "conv_semantic.0"), *_vgg_rules()],
    "s2t": _S2T,
    "qdmr_base": _QDMR,
    "qdmr_uda": _QDMR,
    "image_discriminator": _DISCRIMINATOR,
    "feature_discriminator": _DISCRIMINATOR,
}
KINDS = tuple(_RULES)
Rules = list[tuple[re.Pattern[str], str]]


def _compile(rules: Iterable[tuple[str, str]]) -> Rules:
    compiled = []
    for source, destination in rules:
        pattern = re.escape(source).replace(r"\{\}", r"(\d+)")
        for number in range(1, destination.count("{}") + 1):
            destination = destination.replace("{}", f"\\{number}", 1)
        compiled.append((re.compile(pattern), destination))
    return compiled


_TO = {kind: _compile(rules) for kind, rules in _RULES.items()}
_FROM = {kind: _compile((b, a) for a, b in rules) for kind, rules in _RULES.items()}


def _rename(key: str, rules_of: Mapping[str, Rules], kind: str) -> str:
    """Renames ``key``; a rule names a whole key, or the layer that a weight or bias belongs to."""
    if kind not in rules_of:
        raise QdmrError(f"unknown kind of network {kind!r}: use one of {', '.join(KINDS)}")
    layer, _, leaf = key.rpartition(".")
    stems = [(key, ""), *([(layer, f".{leaf}")] if leaf in ("weight", "bias") else [])]
    for stem, suffix in stems:
        for pattern, destination in rules_of[kind]:
            if match := pattern.fullmatch(stem):
                return match.expand(destination) + suffix
    raise QdmrError(f"key {key!r} does not belong to a {kind} network")


def authors_key(kind: str, key: str) -> str:
    """Returns the authors' name of our ``key``."""
    return _rename(key, _TO, kind)


def our_key(kind: str, key: str) -> str | None:
    """Returns our name of the authors' ``key``, or None for one of their constants."""
    return None if _CONSTANT.search(key) else _rename(key, _FROM, kind)


def from_authors(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our state dict from the authors', without their constants."""
    named = {our_key(kind, key): value for key, value in state.items()}
    return {key: value for key, value in named.items() if key is not None}


def to_authors(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the authors' state dict from ours, with their constants."""
    theirs = {authors_key(kind, key): value for key, value in state.items()}
    if kind in ("qdmr_base", "qdmr_uda"):
        theirs.update(_swin_constants(theirs))
    if kind == "vqgan":
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            theirs[f"vgg_feat_extractor.{name}"] = torch.tensor(values).view(1, 3, 1, 1)
    return theirs


def _swin_constants(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    constants: dict[str, Tensor] = {}
    suffix = "attn.relative_position_bias_table"
    for key in filter(lambda key: key.endswith(suffix), theirs):
        block = key.removesuffix(suffix)
        window = (round(theirs[key].shape[0] ** 0.5) + 1) // 2
        constants[f"{block}attn.relative_position_index"] = relative_position_index(window)
        if int(block.split(".")[-2]) % 2:
            mask = shift_mask(STORED_MASK_SIDE, STORED_MASK_SIDE, window, window // 2)
            constants[f"{block}attn_mask"] = mask
    return constants
