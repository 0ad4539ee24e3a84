"""Trained networks on disk or in a store: ``model.safetensors`` and ``model.json``.

model = load_model("runs/demo/uda/final")
restored = model.network(images).image
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from qdmr_ray.errors import QdmrError, SettingsError, one_line
from qdmr_ray.nets import VQGAN, RestorationNetwork
from qdmr_ray.nets.registry import architecture_of, built_in_networks, network_class
from qdmr_ray.nets.weights import check_finite
from qdmr_ray.parsing import parse_settings
from qdmr_ray.settings import Settings
from qdmr_ray.storage import Location, open_location
from qdmr_ray.untrusted import check_memory, parse_object

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"
# An imported VQGAN's semantic head and VGG19, kept so that they can be written back; nothing here
# computes with them.
EXTRAS_FILE = "extras.safetensors"
# An imported model's digest is this prefix and the SHA-256 of its file.
IMPORTED = "imported-sha256-"
FORMAT = 1
# The architecture, by kind, of models whose description doesn't name it.
_ARCHITECTURES = {
    "vqgan": "vqgan",
    "qdmr_base": "qdmr",
    "qdmr_uda": "qdmr",
    "source_only": "source_only",
}
# What model.json holds besides its format and architecture.
_FIELDS = {"kind": str, "settings": dict, "step": int, "digest": str, "weights_sha256": str}
_AGAIN = "train or import it again"
# A network may have so many weights more than twice those in its file, so that an error can name
# the missing ones; the paper's has 441.
_SURPLUS = 500
Network = VQGAN | RestorationNetwork


@dataclass(frozen=True)
class LoadedModel:
    """A trained network in eval mode: its ``kind``, the ``step`` it was saved at, the ``digest``
    of what determined it, and where it came from."""

    network: Network
    kind: str
    step: int
    digest: str
    source: str

    @property
    def restores(self) -> bool:
        """Whether the network corrects photographs."""
        return isinstance(self.network, RestorationNetwork)


def build_network(kind: str, settings: Settings, architecture: str | None = None) -> Network:
    """Builds an untrained network of the class that ``architecture`` names, by default our class
    for ``kind``; raises SettingsError where there is no such network."""
    build: Any = network_class(architecture or _ARCHITECTURES[kind])
    network: Network = build(settings)
    return network


def shape_network(
    kind: str, settings: Settings, architecture: str | None = None, *, weights: int
) -> Network:
    """Builds a network of ours without memory (on PyTorch's device "meta"), for the keys and shapes
    of its weights, of which a file has so many. Raises SettingsError, soon, where the settings ask
    for far more of them or for impossible sizes: a few bytes can name a hundred million layers."""
    most, thread, count = 2 * weights + _SURPLUS, threading.get_ident(), 0

    def counted(*_: object) -> None:
        nonlocal count
        # The hook sees the networks of all threads.
        count += threading.get_ident() == thread
        if count > most:
            raise SettingsError(
                f"they ask for more than {most} weights, and the file has {weights}"
            )

    hook = register_module_parameter_registration_hook(counted)
    try:
        with torch.device("meta"):
            return build_network(kind, settings, architecture)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise SettingsError(f"they ask for an impossible size: {one_line(error)}") from error
    finally:
        hook.remove()


def save_model(
    folder: Location,
    network: Network,
    *,
    kind: str,
    step: int,
    digest: str,
    extras: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes weights, then the description: a folder without a description holds no model.

    ``extras`` are tensors that belong to the model but not to the network, which
    :func:`load_extras` reads back. Raises QdmrError where the place can't be written to.
    """
    weights = _serialized(network.state_dict())
    description = {
        "format": FORMAT,
        "kind": kind,
        "architecture": architecture_of(type(network)),
        "settings": asdict(network.settings),
        "step": step,
        "digest": digest,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    folder.join(WEIGHTS_FILE).write_bytes_atomic(weights)
    if extras:
        data = _serialized(extras)
        description["extras_sha256"] = hashlib.sha256(data).hexdigest()
        folder.join(EXTRAS_FILE).write_bytes_atomic(data)
    folder.join(DESCRIPTION_FILE).write_bytes_atomic(json.dumps(description, indent=1).encode())


def read_description(folder: Location) -> dict[str, Any] | None:
    """Returns the content of ``model.json``, or None where there is no (complete) model; raises
    QdmrError where the file is not a description of a model."""
    file = folder.join(DESCRIPTION_FILE)
    if not file.exists():
        return None
    try:
        description = parse_object(file.read_bytes())
    except ValueError as error:
        raise QdmrError(f"{file.uri}: is damaged ({error}); {_AGAIN}") from error
    if description.get("format") != FORMAT:
        raise QdmrError(f"{file.uri}: is not a model of format {FORMAT}; {_AGAIN}")
    for key, kind in _FIELDS.items():
        if not isinstance(description.get(key), kind):
            what = f"{key} is no {kind.__name__}" if key in description else f"{key} is missing"
            raise QdmrError(f"{file.uri}: is damaged, {what}; {_AGAIN}")
    description.setdefault("architecture", _ARCHITECTURES.get(description["kind"]))
    if not isinstance(description["architecture"], str):
        raise QdmrError(
            f"{file.uri}: kind {description['kind']!r} is none of {', '.join(_ARCHITECTURES)}; it "
            "was written by another version"
        )
    return description


def load_model(checkpoint: str | Path | Location) -> LoadedModel:
    """Loads the network in a ``final`` folder to the CPU, in eval mode; raises QdmrError for no
    model there, damaged weights, or weights of another network size."""
    folder = checkpoint if isinstance(checkpoint, Location) else open_location(checkpoint)
    description = read_description(folder)
    if description is None:
        raise QdmrError(
            f"{folder.uri}: no {DESCRIPTION_FILE} there; give the folder of a trained model, "
            "such as runs/demo/uda/final"
        )
    file = folder.join(WEIGHTS_FILE)
    kind, architecture = description["kind"], description["architecture"]
    try:
        sizes = network_settings(description)
        state = _read_tensors(file, description["weights_sha256"])
        if architecture in built_in_networks():
            shapes = shape_network(kind, sizes, architecture, weights=len(state))
            _check_shapes(shapes, state, file.uri)
            # A wide window has a small table of weights and a large index of it.
            tensors = [*shapes.parameters(), *shapes.buffers()]
            check_memory(sum(tensor.nbytes for tensor in tensors), "the network")
        network = build_network(kind, sizes, architecture)
    except (SettingsError, OSError) as error:
        raise QdmrError(
            f"{folder.join(DESCRIPTION_FILE).uri}: its settings are not those of a network of this "
            f"version ({one_line(error)}); {_AGAIN}"
        ) from error
    load_weights(network, state, file.uri)
    return LoadedModel(
        network=network.eval(),
        kind=kind,
        step=description["step"],
        digest=description["digest"],
        source=folder.uri,
    )


def load_extras(folder: Location) -> dict[str, Tensor]:
    """Returns the ``extras`` that :func:`save_model` wrote, empty for a model without; raises
    QdmrError where the file is missing or damaged."""
    checksum = (read_description(folder) or {}).get("extras_sha256")
    return _read_tensors(folder.join(EXTRAS_FILE), checksum) if checksum else {}


def network_settings(description: Mapping[str, Any]) -> Settings:
    """Returns network sizes from the description in ``model.json``; raises SettingsError where they
    are not those of its architecture."""
    kind: Any = network_class(description["architecture"])
    return parse_settings(TypeAdapter(kind.settings_type), description["settings"], "settings")


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads ``state`` strictly; raises QdmrError, which names ``source``, where keys are missing or
    too many, or a weight has another shape, is NaN or infinite."""
    _check_shapes(network, state, source)
    network.load_state_dict(dict(state))
    check_finite(network, source, "the training that wrote it had diverged: take other weights")


def _check_shapes(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    wanted = network.state_dict()
    apart = {"missing": wanted.keys() - state.keys(), "unexpected": state.keys() - wanted.keys()}
    parts = [f"{len(keys)} {what} (first: {min(keys)})" for what, keys in apart.items() if keys]
    if parts:
        raise QdmrError(f"{source}: weights of another network: {', '.join(parts)} keys")
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            raise QdmrError(
                f"{source}: weights of another network size: {key} is {tuple(value.shape)}, the "
                f"network's settings ask for {tuple(wanted[key].shape)}"
            )


def _serialized(state: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in state.items()})


def _read_tensors(file: Location, checksum: str) -> dict[str, Tensor]:
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != checksum:
        raise QdmrError(
            f"{file.uri}: differs from its checksum in {DESCRIPTION_FILE}; it is damaged"
        )
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise QdmrError(f"{file.uri}: cannot be read as safetensors ({error})") from error
