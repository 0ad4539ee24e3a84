"""Whole-image inference: any size, both integer types."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from brighten import SMALL, Brighten, loaded, photograph
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate import restore, restore_tensor
from qdmr_ray.evaluate.codebook import compute as codebook
from qdmr_ray.evaluate.metrics.lpips import LPIPS
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import (
    QDMR,
    VQGAN,
)
from qdmr_ray.restore import restoration, streamed
from qdmr_ray.restore.restoration import pad_to_multiple
from qdmr_ray.stages import compute
from qdmr_ray.storage import open_location


def test_padding_reflects_to_and_fro() -> None:
    row = torch.arange(3.0).view(1, 1, 1, 3)

    padded, size = pad_to_multiple(row, 8)

    assert size == (1, 3)
    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0, 5].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


def test_padding_agrees_with_torch_where_torch_can() -> None:
    x = torch.rand(2, 3, 40, 50)

    padded, _ = pad_to_multiple(x, 32)

    assert torch.equal(padded, nn.functional.pad(x, (0, 14, 0, 24), mode="reflect"))


def test_nothing_is_padded_that_fits() -> None:
    x = torch.rand(1, 3, 32, 64)

    assert pad_to_multiple(x, 32)[0] is x


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 53), (16, 32), (15, 17)])
def test_any_size_comes_back_at_its_own_size(size: tuple[int, int]) -> None:
    network = Brighten()
    x = torch.rand(2, 3, *size)

    restored = restore_tensor(network, x)

    assert torch.equal(restored, x)
    assert [side % 16 for side in network.sizes[0]] == [0, 0]


def test_a_real_network_takes_a_single_pixel() -> None:
    torch.manual_seed(0)

    restored = restore(photograph(0, 1, 1), loaded(QDMR(SMALL)))

    assert restored.shape == (1, 1, 3)


def test_result_is_clamped_and_the_mode_left_as_it_was() -> None:
    network = Brighten(0.5).train()

    restored = restore_tensor(network, torch.tensor([0.25, 0.75]).repeat(1, 3, 16, 8))

    assert sorted(set(restored.flatten().tolist())) == [0.75, 1.0]
    assert network.modes == [False]
    assert network.training


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_unchanged_pixels_survive_exactly(kind: type) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, (9, 13, 3)).astype(kind)

    restored = restore(image, loaded(Brighten()))

    assert restored.dtype == kind
    assert np.array_equal(restored, image)


def test_values_are_rounded_not_cut() -> None:
    image = np.full((4, 4, 3), 100, dtype=np.uint8)

    assert restore(image, loaded(Brighten(0.6 / 255)))[0, 0, 0] == 101
    assert restore(image, loaded(Brighten(0.4 / 255)))[0, 0, 0] == 100
    assert restore(image, loaded(Brighten(-1.0)))[0, 0, 0] == 0


def test_runs_in_the_networks_own_precision() -> None:
    image = photograph(1)

    assert np.array_equal(restore(image, loaded(Brighten().double())), image)


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    """As PyTorch is for cuDNN, and anybody may have it for matrix products."""
    before = switches()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def switches() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


class Distance(nn.Module):
    """In the place of LPIPS."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).mean()


def restored(network: nn.Module) -> object:
    return restore(photograph(0), loaded(network))


def counted(network: nn.Module) -> object:
    assert isinstance(network, VQGAN)
    return codebook.count_codes(network, [photograph(0, 16, 16).transpose(2, 0, 1)])


def measured(network: nn.Module) -> object:
    with patch("qdmr_ray.nets.lpips.build_lpips", lambda *_: network):
        measure = LPIPS(weights=None, reference="").open("cpu")
    return measure(photograph(0), photograph(1))


@pytest.mark.usefixtures("tf32_allowed")
@pytest.mark.parametrize(
    ("kind", "run"),
    [
        (Brighten, restored),
        (partial(QDMR, SMALL), restored),
        (partial(VQGAN, SMALL), counted),
        (Distance, measured),
    ],
)
def test_float32_is_float32_on_a_gpu_too(
    kind: Callable[[], nn.Module],
    run: Callable[[nn.Module], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU: what is asked for a CPU is asked for one, and the switches are read from
    within the network."""
    exact = compute.tensor_float_32
    for module in (restoration, streamed, codebook, compute):
        monkeypatch.setattr(
            module, "tensor_float_32", lambda compute, _: exact(compute, torch.device("cuda"))
        )
    seen: set[tuple[bool, bool]] = set()
    network = kind()
    for layer in network.modules():
        layer.register_forward_pre_hook(lambda *_: seen.add(switches()))

    run(network)

    assert seen == {(False, False)}
    assert switches() == (True, True)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(QdmrError, match="shape"):
        restore(image, loaded(Brighten()))


def test_a_path_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = QDMR(SMALL).eval()
    save_model(open_location(tmp_path), network, kind="qdmr_base", step=3, digest="d")
    image = photograph(2)

    assert np.array_equal(restore(image, tmp_path), restore(image, loaded(network)))
    with pytest.raises(QdmrError, match="nowhere"):
        restore(image, tmp_path / "nowhere")


def test_restoring_does_not_import_ray() -> None:
    code = "import sys, qdmr_ray.evaluate; print('ray' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
