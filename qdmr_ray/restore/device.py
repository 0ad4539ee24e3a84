"""The device on which photographs are corrected."""

import re

import torch

from qdmr_ray.errors import SettingsError

_CHOICES = "name cpu, cuda or cuda:N"
# Most errors of CUDA's libraries are a RuntimeError with one of these texts.
_OF_THE_DEVICE = re.compile(
    r"CUDA (driver |unknown )?error|cuDNN error|CUBLAS_STATUS|CUFFT_|Triton Error \[CUDA\]"
    r"|No CUDA GPUs are available|device-side assert"
)


def is_device_error(error: BaseException) -> bool:
    """Returns whether a GPU failed, after which its process can't go on using it. Too little memory
    for an image is no such error: PyTorch goes on with the next image."""
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or bool(_OF_THE_DEVICE.search(str(error)))


def usable_device(name: str | None) -> torch.device:
    """Returns the device called ``name``, for None a GPU where there is one; raises SettingsError
    for a device that is unknown, of another kind, or not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"device {name} is unknown: {_CHOICES}") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise SettingsError(f"device {name} can't be used: {_CHOICES}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        there = f"only {count} of them" if count else "none"
        raise SettingsError(f"device {name} can't be used: PyTorch finds {there} here; {_CHOICES}")
    return device
