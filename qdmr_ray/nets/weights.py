"""Weight files from outside, those of ImageNet classifiers among them; unpickles tensors only."""

import os
import pickle
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError
from qdmr_ray.untrusted import check_archive, open_regular


@dataclass(frozen=True)
class Backbone:
    """One of torchvision's classifiers, whose features a frozen network compares: its name and
    weight file there, the ``user`` of its weights, and the override that is its ``switch``.

    LPIPS compares the layers ``taps``, indices of ReLUs in ``features``; below ``smallest`` pixels
    a side the last one has no pixels left.
    """

    model: str
    file: str = ""
    user: str = ""
    switch: str = ""
    taps: tuple[int, ...] = ()
    smallest: int = 1

    @property
    def setting(self) -> str:
        """The setting that names the weight file."""
        return f"weights.{self.model}"


_VGG, _ALEX = (3, 8, 15, 22, 29), (1, 4, 7, 9, 11)
BACKBONES = {
    "vgg": Backbone(
        "vgg16", "vgg16-397923af.pth", "LPIPS-vgg", "stages.NAME.lpips=0", _VGG, smallest=16
    ),
    "alex": Backbone(
        "alexnet", "alexnet-owt-7be5be79.pth", "LPIPS-alex", "evaluation.lpips=false", _ALEX, 31
    ),
    "vgg19": Backbone(
        "vgg19", "vgg19-dcbb9e9d.pth", "the semantic term", "stages.vqgan.semantic=0"
    ),
}
# The first bytes of torch.save's files: since PyTorch 1.6, and before.
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# Characters of a wrong key that a message shows.
_SHOWN = 80


def load_weight_file(path: Path, remedy: str) -> dict[str, Tensor]:
    """Returns the state dict in ``path``, on the CPU; raises QdmrError, whose message ends with
    ``remedy``, where the file can't be read, holds something else, or claims more than it holds."""
    try:
        with open_regular(path) as file:
            # torch.save compresses nothing: the content is no larger than the file.
            check_archive(file, os.fstat(file.fileno()).st_size)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load has no error of its own: a truncated file raises any of several types.
    except Exception as error:
        raise QdmrError(
            f"{path} cannot be read as PyTorch weights ({_reason(path, error)}): {remedy}"
        ) from error
    if not isinstance(state, dict):
        raise QdmrError(
            f"{path} holds a {type(state).__name__}, not a state dict of weights: {remedy}"
        )
    # An authors' file holds its weights one level deeper.
    inner = [value.items() for value in state.values() if isinstance(value, dict)]
    for key, value in chain(state.items(), *inner):
        if isinstance(value, Tensor) and not _is_whole(value):
            raise QdmrError(
                f"{path}: the tensor {str(key)[:_SHOWN]!r} claims the shape {tuple(value.shape)} "
                f"and holds fewer numbers: {remedy}"
            )
    return state


def _is_whole(tensor: Tensor) -> bool:
    """Whether the file holds each number of the tensor: a few bytes can claim any shape by strides
    of zero, or as a sparse tensor or one without storage."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def check_finite(network: nn.Module, source: str, remedy: str) -> None:
    """Raises QdmrError, which starts with ``source`` and ends with ``remedy``, where a weight is
    NaN or infinite: every result would be NaN, which becomes black pixels."""
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            wrong = int((~torch.isfinite(value)).sum())
            told = f"{wrong} of the {value.numel()} numbers in {key} are NaN or infinite"
            raise QdmrError(f"{source}: {told}; {remedy}")


def find_backbone_weights(net: str, path: Path | str | None = None) -> Path:
    """Returns the weight file of the backbone ``net``: ``path``, else the one in torch's hub cache.
    Downloads nothing. A run calls this at its start, so that it doesn't fail hours later. Raises
    QdmrError where ``net`` is unknown or the file is missing; the message tells how to get it."""
    if net not in BACKBONES:
        raise QdmrError(f"the backbones are {', '.join(BACKBONES)}; it was asked for {net}")
    known = BACKBONES[net]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / known.file
    file = Path(path).expanduser() if path else cached
    if file.is_file():
        return file
    raise QdmrError(
        f"{known.user} needs torchvision's ImageNet weights of {known.model}, and there is no "
        f'file {file}: where there is a network, run python -c "import torchvision; '
        f"torchvision.models.{known.model}(weights='IMAGENET1K_V1')\", which leaves {known.file} "
        f"in torch's cache; copy that file to {cached}, give its path in the setting "
        f"{known.setting}, or switch it off with {known.switch}"
    )


def load_backbone(net: str, path: Path | str | None, network: nn.Module, prefix: str = "") -> None:
    """Gives ``network`` the weights of the backbone ``net`` whose keys are ``prefix`` and its
    own, in float32; raises QdmrError where the file is missing, unreadable or another network's."""
    file = find_backbone_weights(net, path)
    remedy = f"name another file in the setting {BACKBONES[net].setting}"
    state = load_weight_file(file, remedy)
    try:
        own = {key: state[f"{prefix}{key}"] for key in network.state_dict()}
        network.load_state_dict(own, assign=True)
    except (RuntimeError, KeyError) as error:
        raise QdmrError(
            f"{file} does not hold torchvision's {BACKBONES[net].model} weights "
            f"({first_line(error)}): {remedy}"
        ) from error
    network.float()
    check_finite(network, str(file), remedy)


def _reason(path: Path, error: Exception) -> str:
    """Returns the cause in one line. PyTorch's own message would tell how to run the content of a
    refused pickle, and would call a text file such a pickle, or a number."""
    try:
        with open_regular(path) as file:
            start = file.read(len(_ZIP))
    except OSError:
        return first_line(error)
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    if not start:
        return "it is empty"
    if start != _ZIP and not start.startswith(_PICKLE):
        return "it is no file that torch.save wrote"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds something other than tensors, which could run code and is not loaded"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Returns an error's message in one line, without a colon at its end."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")
