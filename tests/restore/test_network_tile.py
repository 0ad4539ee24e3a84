"""``network.tile``: photographs are restored in tiles as large as the crops of training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from qdmr_ray.errors import SettingsError
from qdmr_ray.models.files import LoadedModel
from qdmr_ray.nets import QDMR, VQGAN
from qdmr_ray.nets.qdmr import SourceOnlyQDMR
from qdmr_ray.nets.settings import NetworkSettings
from qdmr_ray.restore.restoration import restore, restore_tensor

TILE = 32
CODES_OF_A_TILE = 8


def made(kind: type[nn.Module], settings: NetworkSettings, tile: int | None) -> LoadedModel:
    torch.manual_seed(0)
    network = kind(replace(settings, tile=tile)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            # Offsets and biases that start at zero would make statistics matter less.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return LoadedModel(network=network, kind="test", step=1, digest="", source="")


@pytest.fixture
def sizes(tiny_network: NetworkSettings) -> NetworkSettings:
    """Tiles of 32 pixels hold 8 x 8 codes."""
    swin = replace(tiny_network.swin, window=4)
    sizes = replace(tiny_network, widths=(8, 8, 16), codebook_size=32, swin=swin)
    assert sizes.downsampling * CODES_OF_A_TILE == TILE
    return sizes


def photograph(height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(3)
    # Statistics differ from place to place.
    ramp = np.linspace(20, 200, width)[None, :, None]
    return (ramp + random.integers(0, 50, (height, width, 3))).astype(np.uint8)


def alone(model: LoadedModel, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the network makes of ``image`` as a whole, and the codes that it chooses."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    codes: list[np.ndarray] = []
    y = restore_tensor(model.network, x, codes.append)[0].permute(1, 2, 0)
    return (y * 255).round().numpy().astype(np.uint8), codes[0]


@pytest.mark.parametrize("kind", [QDMR, VQGAN])
def test_what_fits_a_tile_is_restored_as_before(
    kind: type[nn.Module], sizes: NetworkSettings
) -> None:
    image = photograph(30, 21)
    whole, tiled = (restore(image, made(kind, sizes, tile)) for tile in (None, TILE))
    assert np.abs(whole.astype(int) - tiled).max() <= 1


@pytest.mark.parametrize("kind", [QDMR, VQGAN])
def test_each_tile_is_seen_by_itself(kind: type[nn.Module], sizes: NetworkSettings) -> None:
    image = photograph(TILE, 80)
    model = made(kind, sizes, TILE)
    found: list[np.ndarray] = []
    restored = restore(image, model, codes=found.append)
    (codes,) = found
    assert codes.shape == (CODES_OF_A_TILE, 20)
    # Neighbours share 8 pixels; the one that follows has the codes that both have.
    for left in (0, 24, 48):
        own, own_codes = alone(model, image[:, left : left + TILE])
        middle = slice(6 if left else 0, TILE if left == 48 else TILE - 6)
        difference = own[:, middle].astype(int) - restored[:, left : left + TILE][:, middle]
        assert np.abs(difference).max() <= 1
        count = CODES_OF_A_TILE if left == 48 else 6
        at = left // sizes.downsampling
        np.testing.assert_array_equal(codes[:, at : at + count], own_codes[:, :count])
    whole, _ = alone(model, image)
    assert np.abs(whole.astype(int) - restored).max() > 3


def test_codes_that_change_nothing_are_not_told(sizes: NetworkSettings) -> None:
    def unexpected(codes: np.ndarray) -> None:
        raise AssertionError(codes)

    for kind, settings in ((QDMR, replace(sizes, fusion=False)), (SourceOnlyQDMR, sizes)):
        restore(photograph(TILE, 40), made(kind, settings, TILE), codes=unexpected)


def test_a_tile_that_no_window_fits_is_refused(sizes: NetworkSettings) -> None:
    with pytest.raises(SettingsError, match=r"tile must be a multiple of 16, .* it is 40"):
        replace(sizes, tile=40)
