"""The authors' checkpoints: read into a model folder, and written back bit for bit.

    imported = import_authors(Path("net_g.pth"), "vqgan", open_location("models/vqgan"))
    model = load_model("models/vqgan")

A file holds ``{"params": state dict}`` under the names that ``qdmr_ray.nets.adapter`` maps. The
authors' VQGAN carries a semantic head and VGG19, which only its training needs: the model folder
keeps them in a file of their own, so that they can be written back.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError, SettingsError, printable
from qdmr_ray.models.files import (
    IMPORTED,
    LoadedModel,
    Network,
    build_network,
    load_extras,
    load_weights,
    save_model,
    shape_network,
)
from qdmr_ray.nets import NetworkSettings, SemanticHead, SwinSettings
from qdmr_ray.nets.adapter import STORED_MASK_SIDE, authors_key, our_key, to_authors
from qdmr_ray.nets.registry import restoration_class
from qdmr_ray.nets.vgg import VGG19Features
from qdmr_ray.nets.weights import check_finite, load_weight_file
from qdmr_ray.storage import Location, open_location

KINDS = ("vqgan", "qdmr_base", "qdmr_uda")
# The keys under which a checkpoint may hold its weights, the preferred one first.
PARAMS, AVERAGED = "params", "params_ema"
EXTRA_PREFIXES = ("semantic.", "vgg.")
# Every network of this project has this weight under its own names.
_OURS = "encoder.first.weight"
REMEDY = "give a .pth file of the authors' code, which holds {'params': weights}"
# A weight that identifies a file of another kind, and what that file is.
_TELLTALES = {
    "multiscale_encoder.in_conv.weight": "a VQGAN: use --kind vqgan",
    "cac_encoder.in_conv.weight": "a restoration network: use --kind qdmr_base or qdmr_uda",
    "conv1.weight_orig": "a discriminator, which is not imported",
}


@dataclass(frozen=True)
class AuthorsWeights:
    """The content of a file in our names: the network's ``state`` and sizes, a VQGAN's ``extras``
    (otherwise empty), and ``notes`` for the user, a line each."""

    settings: NetworkSettings
    state: dict[str, Tensor]
    extras: dict[str, Tensor]
    notes: tuple[str, ...]


def import_authors(file: Path, kind: str, out: Location) -> tuple[str, ...]:
    """Writes the model folder ``out`` from the authors' ``file``; returns notes for the user.

    The model's step is 0 and its digest comes from the file. ``out`` is new or empty, and stays
    so when something fails. Raises SettingsError where ``kind`` is none of ``KINDS`` and no
    restoration network; QdmrError where the file is no such network's, or ``out`` is in use or not
    writable.
    """
    existed = out.exists()
    if existed and (out.size() is not None or out.list()):
        raise QdmrError(f"{out.uri}: is there already; name a new or empty folder for --out")
    network, extras, notes = _read(file, kind)
    digest = IMPORTED + hashlib.sha256(file.read_bytes()).hexdigest()
    try:
        save_model(out, network, kind=kind, step=0, digest=digest, extras=extras)
    except BaseException:
        # An error while tidying up would hide the first one.
        with suppress(QdmrError):
            for written in out.list() if existed else [out]:
                written.delete()
        raise
    return notes


def _read(file: Path, kind: str) -> tuple[Network, dict[str, Tensor], tuple[str, ...]]:
    if kind in KINDS:
        weights = read_authors(file, kind)
        network = build_network(kind, weights.settings)
        load_weights(network, weights.state, str(file))
        return network, weights.extras, weights.notes
    try:
        other = restoration_class(kind)
    except SettingsError as error:
        raise SettingsError(
            f"--kind {kind}: choose from {', '.join(KINDS)}, or a restoration network that reads "
            f"foreign weights ({error})"
        ) from error
    state, notes = _state_dict(file)
    network = other.from_foreign(state, str(file))
    check_finite(network, str(file), REMEDY)
    return network, {}, tuple(notes)


def read_authors(file: Path, kind: str) -> AuthorsWeights:
    """Reads the weights of a network of ``kind`` from the authors' ``file``; runs no code in it.

    The network's sizes follow from the weights; those that don't are the paper's. Raises QdmrError
    where the file is unreadable, or keys are missing, unexpected or of a wrong shape; the message
    names each of them in a line of its own after the first.
    """
    theirs, notes = _state_dict(file)
    if _OURS in theirs:
        raise QdmrError(
            f"{file}: holds this project's own names ({_OURS}), not the authors': a model folder "
            "needs no import; name the folder where a checkpoint is asked for"
        )
    ours, unexpected = dict[str, Tensor](), list[str]()
    for key, value in theirs.items():
        try:
            name = our_key(kind, key)
        except QdmrError:
            unexpected.append(key)
            continue
        if name is not None:
            ours[name] = value
    settings = infer_settings(ours)
    has_extras = any(key.startswith(EXTRA_PREFIXES) for key in ours)
    try:
        wanted = _wanted_shapes(kind, settings, has_extras, len(theirs))
    except SettingsError as error:
        numbered = "the numbers in its keys are not those of a network's layers"
        raise QdmrError(f"{file}: {numbered} ({error}): {REMEDY}") from error
    missing = [authors_key(kind, key) for key in wanted if key not in ours]
    unexpected += [authors_key(kind, key) for key in ours if key not in wanted]
    shapes = [
        f"{authors_key(kind, key)} {tuple(ours[key].shape)} instead of {wanted[key]}"
        for key in wanted
        if key in ours and tuple(ours[key].shape) != wanted[key]
    ]
    if missing or unexpected or shapes:
        problems = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
        counts = ", ".join(f"{len(found)} {what}" for what, found in problems.items() if found)
        named = [(what, name) for what, found in problems.items() for name in found]
        lines = [f"  {what}: {printable(name)}" for what, name in named]
        first = f"{file}: not the weights of a {kind} network: keys: {counts}"
        raise QdmrError(f"{first}{_other_kind(kind, theirs)}", *lines)
    if kind == "vqgan" and not has_extras:
        notes.append("holds no semantic head and no VGG19: only training a VQGAN needs them")
    notes += _differences(settings)
    extras = {key: ours.pop(key) for key in list(ours) if key.startswith(EXTRA_PREFIXES)}
    return AuthorsWeights(settings, ours, extras, tuple(notes))


def authors_state(model: LoadedModel) -> dict[str, Tensor]:
    """Returns the state dict that the authors' code loads, its constants included.

    A VQGAN without extras (one trained here) becomes what the authors call the s2t network.
    Raises QdmrError where the authors' code has no such network.
    """
    settings = model.network.settings
    if model.kind not in KINDS:
        raise QdmrError(
            f"{model.source}: the authors' code has no {model.kind} network; name one of kind "
            f"{', '.join(KINDS)}"
        )
    restores = model.kind != "vqgan"
    if restores and settings.global_residual:
        raise QdmrError(
            f"{model.source}: was trained with network.global_residual, which the authors' code "
            "does not know; export it to safetensors, onnx or pt2"
        )
    if restores and STORED_MASK_SIDE % settings.swin.window:
        raise QdmrError(
            f"{model.source}: its window of {settings.swin.window} does not divide the "
            f"{STORED_MASK_SIDE} x {STORED_MASK_SIDE} map of the authors' shift mask; export it "
            "to safetensors, onnx or pt2"
        )
    extras = {} if restores else load_extras(open_location(model.source))
    kind = model.kind if restores or extras else "s2t"
    return to_authors(kind, {**model.network.state_dict(), **extras})


def infer_settings(state: Mapping[str, Tensor]) -> NetworkSettings:
    """Returns the sizes of the network with these weights, which have our names.

    Sizes that weights don't show (the commitment weight; a VQGAN's Swin bottleneck) are the
    paper's, and so are all where the weights contradict themselves.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        # A key may hold any number: the first level that is missing ends the count.
        levels = range(_count(shapes, r"encoder\.levels\.(\d+)\."))
        coarser = (shapes[f"encoder.levels.{level}.0.weight"][0] for level in levels)
        widths = (shapes["encoder.first.weight"][0], *coarser)
        codebook_size, code_dim = shapes["quantizer.codes"]
        return NetworkSettings(
            widths=widths,
            residual_blocks=_count(shapes, r"encoder\.levels\.0\.(\d+)\.") - 1,
            codebook_size=codebook_size,
            code_dim=code_dim,
            swin=_infer_swin(shapes, widths[-1]),
        )
    except (SettingsError, LookupError, ValueError, ArithmeticError):
        return NetworkSettings()


def _infer_swin(shapes: Mapping[str, tuple[int, ...]], width: int) -> SwinSettings:
    if not any(key.startswith("bottleneck.") for key in shapes):
        return SwinSettings(heads=math.gcd(SwinSettings().heads, width))
    rows, heads = shapes["bottleneck.groups.0.blocks.0.attention.bias_table"]
    hidden = shapes["bottleneck.groups.0.blocks.0.mlp.0.weight"][0]
    return SwinSettings(
        groups=_count(shapes, r"bottleneck\.groups\.(\d+)\."),
        blocks=_count(shapes, r"bottleneck\.groups\.0\.blocks\.(\d+)\."),
        heads=heads,
        window=(math.isqrt(rows) + 1) // 2,
        mlp_ratio=hidden / width,
    )


def _count(keys: Mapping[str, Any], pattern: str) -> int:
    """Returns one more than the largest number that ``pattern`` finds."""
    found = (re.match(pattern, key) for key in keys)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _state_dict(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    if file.is_dir():
        raise QdmrError(f"{file}: is a folder: {REMEDY}")
    if not file.is_file():
        raise QdmrError(f"{file}: no such file; check the path")
    content: dict[str, Any] = load_weight_file(file, REMEDY)
    state = content.get(PARAMS, content.get(AVERAGED, content))
    notes = []
    if PARAMS not in content:
        taken = f"its averaged weights {AVERAGED!r} are taken"
        bare = "it is taken for a bare state dict"
        notes.append(f"holds no {PARAMS!r}: {taken if AVERAGED in content else bare}")
    if not isinstance(state, dict) or not state:
        raise QdmrError(f"{file}: holds no weights: {REMEDY}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise QdmrError(
                f"{file}: {key!r} is a {type(value).__name__}, not a tensor of weights: {REMEDY}"
            )
    floats = {v.dtype for v in state.values() if v.is_floating_point()} - {torch.float32}
    if floats:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in floats))
        notes.append(f"holds weights in {names}: they become float32")
    return state, notes


def _wanted_shapes(
    kind: str, settings: NetworkSettings, extras: bool, weights: int
) -> dict[str, tuple[int, ...]]:
    modules: dict[str, nn.Module] = {"": shape_network(kind, settings, weights=weights)}
    if extras:
        with torch.device("meta"):
            modules |= {"semantic.": SemanticHead(settings.code_dim), "vgg.": VGG19Features()}
    return {
        f"{prefix}{key}": tuple(value.shape)
        for prefix, module in modules.items()
        for key, value in module.state_dict().items()
    }


def _other_kind(kind: str, theirs: Mapping[str, Tensor]) -> str:
    own = "multiscale_encoder" if kind == "vqgan" else "cac_encoder"
    for key, what in _TELLTALES.items():
        if key in theirs and not key.startswith(own):
            return f"; it looks like {what}"
    return ""


def _differences(settings: NetworkSettings) -> list[str]:
    """Returns a line with the differences from the paper's sizes, or none where there are none."""
    paper, found = asdict(NetworkSettings()), asdict(settings)
    for sizes in (paper, found):
        sizes |= {f"swin.{key}": value for key, value in sizes.pop("swin").items()}
    changed = [f"{k} {found[k]} instead of {paper[k]}" for k in found if found[k] != paper[k]]
    return [f"differs from the paper's network: {', '.join(changed)}"] if changed else []
