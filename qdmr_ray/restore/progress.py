"""The share of a photograph's arithmetic that is done."""

from collections.abc import Callable

from torch import nn

from qdmr_ray.nets import QDMR

Progress = Callable[[float], None]


class Work:
    """Calls ``progress`` with the share, 0 .. 1, of a photograph's arithmetic that is done.
    ``height`` and ``width`` are those of the padded photograph. A layer's arithmetic is its number
    of weights at each position, without what convolutions compute twice to save memory."""

    def __init__(self, network: QDMR, height: int, width: int, progress: Progress | None) -> None:
        self._progress, self._done = progress, 0
        encoder, decoder = network.encoder, network.decoder
        pixels = height * width
        self._total = _weights(decoder.last) * pixels
        for level in encoder.levels:
            pixels //= 4
            self._total += _weights(level) * pixels
        self._total += _weights(network.bottleneck) * pixels
        if network.domain_mixing and network.settings.fusion:
            self._total += sum(_weights(layer) for layer in fusing_layers(network)) * pixels
        for level in decoder.levels:
            pixels *= 4
            self._total += _weights(level) * pixels

    def did(self, layer: nn.Module, positions: int) -> None:
        """Records that ``layer`` has computed so many more positions of its result."""
        if self._progress is not None:
            self._done += _weights(layer) * positions
            self._progress(self._done / self._total)


def fusing_layers(network: QDMR) -> list[nn.Module]:
    """Returns the layers that find each position's code and fuse it with the features."""
    return [network.before_quant, network.quantizer, network.after_quant, network.fusion]


def _weights(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())
