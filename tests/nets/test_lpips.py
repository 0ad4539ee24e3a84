"""LPIPS against the golden figures and the package whose heads it uses."""

from __future__ import annotations

import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets.lpips import LPIPS, build_lpips
from qdmr_ray.nets.weights import BACKBONES, find_backbone_weights

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())


def image(seed: int, size: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((2, 3, size, size)))


def recipe_weights(net: str) -> dict[str, torch.Tensor]:
    """golden/README.md's weights under torchvision's keys."""
    with torch.device("meta"):
        network = getattr(torchvision.models, BACKBONES[net].model)(weights=None)
    state = {}
    for key, value in network.state_dict().items():
        if key.startswith("features."):
            random = np.random.default_rng(zlib.crc32(key.encode()))
            a = random.standard_normal(tuple(value.shape))
            a = 0.02 * a if key.endswith("bias") else a / np.sqrt(np.prod(value.shape[1:]))
            state[key] = torch.from_numpy(a).float()
    return state


@pytest.fixture(scope="module")
def alex_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alex.pth"
    torch.save(recipe_weights("alex"), path)
    return path


@pytest.fixture(scope="module")
def alex(alex_file: Path) -> LPIPS:
    return build_lpips("alex", alex_file).double()


def test_agrees_with_the_golden_figures(tmp_path: Path) -> None:
    torch.save(recipe_weights("vgg"), tmp_path / "vgg.pth")
    lpips = build_lpips("vgg", tmp_path / "vgg.pth").double()

    found = lpips(image(1), image(2))

    assert found.tolist() == pytest.approx(GOLDEN["lpips_vgg"], rel=1e-6)


def test_agrees_with_the_lpips_package(alex: LPIPS, alex_file: Path) -> None:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchvision on lpips' way of calling it
        theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).double()
    for key, value in torch.load(alex_file).items():
        layer, kind = key.removeprefix("features.").split(".")
        parameters = dict(theirs.net.named_parameters())
        name = next(name for name in parameters if name.endswith(f".{layer}.{kind}"))
        parameters[name].data.copy_(value)

    expected = theirs(image(1), image(2), normalize=True).flatten()

    assert alex(image(1), image(2)).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_identical_images_have_no_distance(alex: LPIPS) -> None:
    assert alex(image(1), image(1)).tolist() == [0.0, 0.0]


def test_features_may_be_computed_once(alex: LPIPS) -> None:
    separate = alex.distance(alex.features(image(1)), alex.features(image(2)))

    assert separate.tolist() == alex(image(1), image(2)).tolist()


def test_gradients_reach_the_first_image_only(alex: LPIPS) -> None:
    restored, target = image(1).requires_grad_(), image(2).requires_grad_()

    alex(restored, target).mean().backward()

    assert restored.grad is not None
    assert restored.grad.abs().sum() > 0
    assert target.grad is None
    assert not any(parameter.requires_grad for parameter in alex.parameters())


def test_weights_are_found_in_torchs_cache(
    tmp_path: Path, alex_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir()
    cached.write_bytes(alex_file.read_bytes())

    assert find_backbone_weights("alex") == cached
    assert build_lpips("alex")(image(1).float(), image(1).float()).tolist() == [0.0, 0.0]


def test_missing_weights_are_explained_and_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)

    with pytest.raises(QdmrError) as caught:
        build_lpips("vgg")

    message = str(caught.value)
    assert str(tmp_path / "checkpoints" / "vgg16-397923af.pth") in message
    assert "weights.vgg16" in message
    assert "\n" not in message


def test_a_named_file_that_is_missing_is_not_replaced_by_the_cache(
    tmp_path: Path, alex_file: Path
) -> None:
    with pytest.raises(QdmrError, match=r"elsewhere\.pth"):
        find_backbone_weights("alex", tmp_path / "elsewhere.pth")


@pytest.mark.parametrize("content", ["truncated", "list", "other network"])
def test_unusable_weights_are_named(tmp_path: Path, alex_file: Path, content: str) -> None:
    path = tmp_path / "weights.pth"
    if content == "truncated":
        path.write_bytes(alex_file.read_bytes()[:1000])
    else:
        torch.save([1, 2] if content == "list" else {"features.0.weight": torch.zeros(3)}, path)

    with pytest.raises(QdmrError, match=r"weights\.pth.*weights\.alexnet") as caught:
        build_lpips("alex", path)

    assert "\n" not in str(caught.value)


def test_too_small_an_image_is_refused(alex: LPIPS) -> None:
    assert alex(image(1, 31), image(2, 31)).isfinite().all()
    with pytest.raises(QdmrError, match="30x30"):
        alex(image(1, 30), image(2, 30))
    with pytest.raises(QdmrError, match="squeeze"):
        build_lpips("squeeze")
