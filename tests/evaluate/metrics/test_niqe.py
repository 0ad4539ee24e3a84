"""NIQE against a slow reference from METHOD.md; pristine models, their files and fitting."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.signal
import skimage.data
import typer
from PIL import Image
from scipy.special import gamma
from typer.testing import CliRunner

from qdmr_ray.cli.judge import niqe_fit
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.metrics.niqe import PristineFit, block_features, halve, niqe
from qdmr_ray.evaluate.metrics.pristine import PristineModel, load_pristine, save_pristine
from qdmr_ray.photographs.decode import write_png

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "metrics.json").read_text())
# NIQE's authors' parameters are not this project's to ship; where they are, they are used.
SHARED = Path(__file__).parents[4] / "shared" / "data" / "niqe_pris_params.npz"
OFFSETS = np.arange(-3, 4)
GAUSSIAN = np.exp(-(OFFSETS[:, None] ** 2 + OFFSETS[None] ** 2) / (2 * (7 / 6) ** 2))
WINDOW = GAUSSIAN / GAUSSIAN.sum()


def texture(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth noise with edges: neighbouring pixels have to do with one another."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)
    fine = rng.normal(0, 12, (height, width, 3))
    return np.clip(0.6 * coarse[:height, :width] + 40 + fine, 0, 255).astype(np.uint8)


def own_model(seed: int = 0, window: np.ndarray = WINDOW) -> PristineModel:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(36, 36)) / 10
    return PristineModel(rng.random(36), root @ root.T + 0.1 * np.eye(36), window, "a test")


def blurred(image: np.ndarray) -> np.ndarray:
    """The golden blur."""
    wide = image.astype(np.int64)
    shifted = sum(np.roll(wide, shift, axis) for shift, axis in ((1, 0), (1, 1), (3, 1)))
    return ((wide + shifted) // 4).astype(np.uint8)


# -- a reference, written from METHOD.md one block and one pixel at a time -------------------


def reference_half(image: np.ndarray) -> np.ndarray:
    """MATLAB's imresize as its ``contributions`` has it, one line of the image after the other."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    def line(values: np.ndarray) -> np.ndarray:
        length = len(values)
        # Mirrored with the edge itself repeated.
        mirror = [*range(length), *range(length - 1, -1, -1)]
        result = []
        for i in range(1, length // 2 + 1):
            centre = i / 0.5 + 0.5 * (1 - 1 / 0.5)
            left = math.floor(centre - 4)
            positions = range(left, left + 10)
            weights = [0.5 * cubic(0.5 * (centre - p)) for p in positions]
            taken = [values[mirror[(p - 1) % (2 * length)]] for p in positions]
            result.append(np.dot(weights, taken) / sum(weights))
        return np.array(result)

    return np.apply_along_axis(line, 1, np.apply_along_axis(line, 0, image))


def reference_gaussian(values: np.ndarray) -> tuple[float, float, float]:
    shapes = [0.2 + 0.001 * i for i in range(9801)]
    x = values.ravel()
    left = math.sqrt((x[x < 0] ** 2).mean()) if (x < 0).any() else math.nan
    right = math.sqrt((x[x > 0] ** 2).mean()) if (x > 0).any() else math.nan
    if math.isnan(left) or math.isnan(right):
        # Nothing is smaller than NaN, and the first shape stays.
        a = shapes[0]
    else:
        g = left / right
        rho = abs(x).mean() ** 2 / (x**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
        errors = [(gamma(2 / a) ** 2 / (gamma(1 / a) * gamma(3 / a)) - rho) ** 2 for a in shapes]
        a = shapes[errors.index(min(errors))]
    spread = math.sqrt(gamma(1 / a) / gamma(3 / a))
    return a, left * spread, right * spread


def reference_features(image: np.ndarray, border: int = 0) -> np.ndarray:
    """``(N, 36)``, one row per block."""
    red, green, blue = (image[..., c].astype(np.float32) / np.float32(255) for c in range(3))
    weights = [np.float32(w) for w in (0.114, 0.587, 0.299)]
    grey = (blue * weights[0] + green * weights[1] + red * weights[2]) * np.float32(255)
    grey = np.rint(grey).astype(np.float64)[border:, border:]
    rows, columns = ((side - border) // 96 for side in grey.shape)
    grey = grey[: rows * 96, : columns * 96]
    scales = []
    for scale, block in ((grey, 96), (reference_half(grey / 255) * 255, 48)):
        padded = np.pad(scale, 3, mode="edge")
        mean = scipy.signal.convolve2d(padded, WINDOW, mode="valid")
        square = scipy.signal.convolve2d(padded**2, WINDOW, mode="valid")
        # Flat is flat: to eleven digits, so that no rounding counts as contrast.
        difference = np.round(scale - mean, 11)
        normalised = difference / (np.sqrt(abs(square - mean**2)) + 1)
        features = []
        for row in range(rows):
            for column in range(columns):
                x = normalised[row * block :, column * block :][:block, :block]
                a, left, right = reference_gaussian(x)
                own = [a, (left + right) / 2]
                for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    shifted = np.roll(np.roll(x, down, axis=0), across, axis=1)
                    a, left, right = reference_gaussian(x * shifted)
                    own += [a, (right - left) * gamma(2 / a) / gamma(1 / a), left, right]
                features.append(own)
        scales.append(np.array(features))
    return np.concatenate(scales, axis=1)


def reference_niqe(features: np.ndarray, model: PristineModel) -> float:
    complete = [row for row in features if not np.isnan(row).any()]
    image = np.cov(np.array(complete).T)
    difference = model.mean - np.array([c[~np.isnan(c)].mean() for c in features.T])
    inverse = np.linalg.inv((model.covariance + image) / 2)
    return math.sqrt(difference @ inverse @ difference)


# -- the figure ------------------------------------------------------------------------------


@pytest.mark.parametrize("border", [0, 5])
def test_agrees_with_the_reference(border: int) -> None:
    # Not whole blocks: what is left over at the right and the bottom does not count.
    image, model = texture(1, 2 * 96 + 17, 2 * 96 + 30), own_model()
    wanted = reference_features(image, border)

    found, _ = block_features(image, border=border)

    assert found.shape == (4, 36)
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)
    assert niqe(image, model, border) == pytest.approx(reference_niqe(wanted, model), rel=1e-7)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_flat_block_counts_as_the_reference_has_it(level: int) -> None:
    image, model = texture(2, 96, 4 * 96), own_model()
    image[:, : 96 + 12] = level
    wanted = reference_features(image)
    assert np.isnan(wanted).any(axis=1).tolist() == [True, False, False, False]

    found, _ = block_features(image)

    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)
    assert niqe(image, model) == pytest.approx(reference_niqe(wanted, model), rel=1e-7)


def test_the_models_own_window_is_used() -> None:
    image = texture(3, 96, 192)
    box = np.full((7, 7), 1 / 49)

    assert abs(niqe(image, own_model(window=box)) - niqe(image, own_model())) > 1e-3


@pytest.mark.parametrize("name", ["coffee", "astronaut", "chelsea"])
def test_agrees_with_the_golden_figures_where_the_authors_parameters_are(name: str) -> None:
    if not SHARED.is_file():
        pytest.skip(f"there are no pristine parameters in {SHARED}")
    model, image = load_pristine(SHARED), getattr(skimage.data, name)()
    # golden/README.md: of these, chelsea's sharp one alone has no grey value on .5.
    closeness = 1e-5 if name == "chelsea" else 3e-3

    assert niqe(image, model) == pytest.approx(GOLDEN[name]["niqe"], rel=closeness)
    assert niqe(blurred(image), model) == pytest.approx(GOLDEN[name]["niqe_blurred"], rel=3e-3)


def test_halving_is_matlabs() -> None:
    image = np.random.default_rng(5).integers(0, 256, (12, 20)).astype(np.float64)

    found = halve(image)

    assert found.shape == (6, 10)
    np.testing.assert_allclose(found, reference_half(image), rtol=1e-12)
    # Pillow has the same kernel, but treats edges in its own way.
    pillow = np.asarray(Image.fromarray(image.astype(np.float32)).resize((10, 6), Image.BICUBIC))
    np.testing.assert_allclose(found[2:-2, 2:-2], pillow[2:-2, 2:-2], rtol=1e-5)


def test_halving_an_impulse_gives_the_kernel() -> None:
    image = np.zeros((16, 16))
    image[8, 8] = 256.0**2

    # A bicubic twice as wide as usual, at 2.5, 0.5, 1.5 and 3.5 pixels from the new ones: 256ths.
    kernel = np.array([0, 0, -3, 29, 111, -9, 0, 0])
    np.testing.assert_array_equal(halve(image), np.outer(kernel, kernel))


def test_refuses_what_has_no_figure() -> None:
    model = own_model()
    with pytest.raises(QdmrError, match=r"float64 \(96, 192, 3\)"):
        niqe(texture(0, 96, 192) / 255, model)
    with pytest.raises(QdmrError, match=r"\(96, 192\): convert"):
        niqe(texture(0, 96, 192)[..., 0], model)
    with pytest.raises(QdmrError, match="border must be at least 0; it is -1"):
        niqe(texture(0, 96, 192), model, border=-1)
    with pytest.raises(QdmrError, match="150x95 has 0 inside border=0"):
        niqe(texture(0, 95, 150), model)
    # One block has no covariance.
    with pytest.raises(QdmrError, match="191x191 has 1 inside border=0"):
        niqe(texture(0, 191, 191), model)
    with pytest.raises(QdmrError, match="200x100 has 0 inside border=60"):
        niqe(texture(0, 100, 200), model, border=60)
    flat = texture(0, 96, 192)
    flat[:, :110] = 9
    with pytest.raises(QdmrError, match="not flat; an image of 192x96 has 1"):
        niqe(flat, model)


# -- files -----------------------------------------------------------------------------------


def same(a: PristineModel, b: PristineModel) -> bool:
    arrays = ((getattr(a, n), getattr(b, n)) for n in ("mean", "covariance", "window"))
    return all(np.array_equal(x, y) for x, y in arrays)


def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path) -> None:
    model, path = own_model(window=np.full((7, 7), 1 / 49)), tmp_path / "own.npz"

    save_pristine(path, model)
    loaded = load_pristine(path)

    assert same(loaded, model)
    assert loaded.source == "a test"
    assert [file.name for file in tmp_path.iterdir()] == ["own.npz"]


@pytest.mark.parametrize("middle", ["", "_"])
def test_reads_matlabs_file(tmp_path: Path, middle: str) -> None:
    model, path = own_model(), tmp_path / "modelparameters.mat"
    names = {f"mu_pris{middle}param": model.mean, f"cov_pris{middle}param": model.covariance}
    scipy.io.savemat(path, names)

    loaded = load_pristine(path)

    np.testing.assert_array_equal(loaded.mean, model.mean)
    np.testing.assert_array_equal(loaded.covariance, model.covariance)
    np.testing.assert_allclose(loaded.window, WINDOW, rtol=1e-13)
    assert loaded.source == str(path)


def test_reads_the_file_that_other_programs_carry(tmp_path: Path) -> None:
    model, path = own_model(), tmp_path / "niqe_pris_params.npz"
    np.savez(
        path,
        mu_pris_param=model.mean[None],
        cov_pris_param=model.covariance,
        gaussian_window=model.window,
    )

    assert same(load_pristine(path), model)


RIGHT = {"mu_pris_param": np.zeros(36), "cov_pris_param": np.eye(36)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(36)}, "holds no mu_prisparam or mu_pris_param, but mean"),
        ({"mu_pris_param": np.zeros(36)}, "holds no cov_prisparam or cov_pris_param, but mu_"),
        (RIGHT | {"mu_pris_param": np.zeros(18)}, r"mean .* has shape \(36,\) .* shape \(18,\)"),
        (RIGHT | {"cov_pris_param": np.eye(18)}, r"covariance .* \(36, 36\) .* shape \(18, 18\)"),
        (RIGHT | {"gaussian_window": np.ones((5, 5))}, r"window .* \(7, 7\) .* shape \(5, 5\)"),
        (RIGHT | {"mu_pris_param": np.full(36, np.nan)}, "mean .* finite"),
        (RIGHT | {"mu_pris_param": np.full(36, "x")}, "mu_pris_param holds no real numbers"),
        (RIGHT | {"mu_pris_param": np.full(36, None)}, r"no readable \.npz .* allow_pickle"),
        (RIGHT | {"source": "elsewhere", "cov_pris_param": np.eye(2)}, r"covariance .* \(2, 2\)"),
    ],
)
def test_refuses_files_that_hold_no_model(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)

    with pytest.raises(QdmrError, match=message) as error:
        load_pristine(path)

    text = str(error.value)
    assert str(path) in text
    assert "qdmr niqe-fit" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["own.npz", "own.mat"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"neither of the two" * 40])
def test_refuses_files_of_another_kind(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(QdmrError, match=rf"{name}: is no readable \{path.suffix}.*niqe-fit"):
        load_pristine(path)


def test_refuses_an_array_without_names_and_a_missing_file(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(36))
    with pytest.raises(QdmrError, match=r"one\.npy: is no readable"):
        load_pristine(tmp_path / "one.npy")
    with pytest.raises(QdmrError, match=r"none\.mat: .* cannot be read \(No such file.*niqe-fit"):
        load_pristine(tmp_path / "none.mat")


def test_refuses_places_where_no_model_can_be(tmp_path: Path) -> None:
    with pytest.raises(QdmrError, match=r"own\.mat: .* ends in \.npz"):
        save_pristine(tmp_path / "own.mat", own_model())
    with pytest.raises(QdmrError, match=r"nowhere.own\.npz: there is no folder"):
        save_pristine(tmp_path / "nowhere" / "own.npz", own_model())


# -- fitting ---------------------------------------------------------------------------------


def fit_pristine(
    images: Iterable[np.ndarray], sharpness: float = 0.75, source: str = "own images"
) -> PristineModel:
    fit = PristineFit(sharpness)
    for image in images:
        fit.add(image)
    return fit.model(source)


@pytest.fixture(scope="module")
def photographs() -> tuple[np.ndarray, ...]:
    return (
        skimage.data.hubble_deep_field(),
        skimage.data.chelsea(),
        skimage.data.immunohistochemistry(),
    )


def sharp_blocks(image: np.ndarray) -> np.ndarray:
    features, sharpness = block_features(image)
    return features[sharpness > 0.75 * sharpness.max()]


def test_fit_is_mean_and_covariance_of_the_sharp_blocks(
    photographs: tuple[np.ndarray, ...],
) -> None:
    rows = np.concatenate([sharp_blocks(image) for image in photographs])

    model = fit_pristine(iter(photographs), source="three")

    assert len(rows) < sum(len(block_features(image)[0]) for image in photographs)
    np.testing.assert_allclose(model.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(model.covariance, np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(model.window, WINDOW, rtol=1e-13)
    assert model.source == "three"
    # What such a model is for.
    coffee = skimage.data.coffee()
    assert niqe(coffee, model) < niqe(blurred(coffee), model)


def test_sharpness_is_the_mean_deviation_of_the_blocks_pixels() -> None:
    image = texture(6, 96, 192)
    grey = np.rint(image @ np.array([0.299, 0.587, 0.114]))
    padded = np.pad(grey, 3, mode="edge")
    mean = scipy.signal.convolve2d(padded, WINDOW, mode="valid")
    variance = scipy.signal.convolve2d(padded**2, WINDOW, mode="valid") - mean**2
    deviation = np.sqrt(abs(variance))

    _, sharpness = block_features(image)

    wanted = [deviation[:, :96].mean(), deviation[:, 96:].mean()]
    np.testing.assert_allclose(sharpness, wanted, rtol=1e-3)


def test_only_sharp_blocks_of_an_image_are_fitted() -> None:
    image = texture(7, 96, 3 * 96)
    image[:, 96:192] = 128 + (image[:, 96:192].astype(int) - 128) // 2
    image[:, 192:] = 50

    fit = PristineFit()

    assert fit.add(image) == 1
    assert PristineFit(sharpness=0.3).add(image) == 2
    assert PristineFit(sharpness=0.0).add(np.full((96, 96, 3), 50, dtype=np.uint8)) == 0
    assert (fit.images, fit.blocks) == (1, 1)


def test_images_are_let_go_one_by_one() -> None:
    given: list[weakref.ref[np.ndarray]] = []

    def images() -> Iterator[np.ndarray]:
        for seed in range(4):
            # The one before may still be in the reader's hand.
            assert all(image() is None for image in given[:-1])
            image = texture(seed, 96, 10 * 96)
            given.append(weakref.ref(image))
            yield image
            del image

    assert fit_pristine(images(), sharpness=0.0).mean.shape == (36,)
    assert len(given) == 4


def test_refuses_to_fit_too_few_blocks_and_odd_shares() -> None:
    # 36 blocks have a covariance of rank 35.
    with pytest.raises(QdmrError, match=r"more than 36 sharp blocks .* 1 images gave 36"):
        fit_pristine([texture(0, 6 * 96, 6 * 96)], sharpness=0.0)
    assert fit_pristine([texture(0, 37 * 96, 96)], sharpness=0.0).mean.shape == (36,)
    with pytest.raises(QdmrError, match="0 images gave 0"):
        fit_pristine([])
    with pytest.raises(QdmrError, match="200x95 is smaller than 96x96"):
        fit_pristine([texture(0, 95, 200)])
    for share in (-0.1, 1.0):
        with pytest.raises(QdmrError, match=f"sharpness .* it is {share}"):
            PristineFit(share)


# -- the command -----------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(niqe_fit)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path, photographs: tuple[np.ndarray, ...]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(photographs):
        write_png(folder / f"{index}.png", image)
    return folder


def test_command_fits_folders_and_files(
    tmp_path: Path, folder: Path, photographs: tuple[np.ndarray, ...]
) -> None:
    out = tmp_path / "pristine.npz"
    blocks = sum(len(sharp_blocks(image)) for image in photographs)

    # The file named again lies in the folder, and counts once.
    result = run(folder, folder / "0.png", "--out", out)

    assert result.exit_code == 0, result.exception
    assert result.stdout == f"3 images and {blocks} blocks went into {out}\n"
    loaded = load_pristine(out)
    assert same(loaded, fit_pristine(photographs))
    assert loaded.source.startswith(f"3 images and {blocks} blocks of {folder}")


def test_command_leaves_out_and_names_the_photographs_it_cannot_take(
    tmp_path: Path, folder: Path, photographs: tuple[np.ndarray, ...]
) -> None:
    write_png(folder / "0small.png", texture(0, 50, 200))
    (folder / "1broken.png").write_bytes(b"no photograph")
    out = tmp_path / "pristine.npz"

    result = run(folder, "--out", out)

    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"qdmr: {folder / '0small.png'}: an image of 200x50 ")
    assert lines[1].startswith(f"qdmr: {folder / '1broken.png'}")
    assert "niqe-fit: done" in lines
    assert lines[-1] == "qdmr: 2 of 5 photographs were left out"
    assert same(load_pristine(out), fit_pristine(photographs))


def test_command_looks_at_its_target_first(tmp_path: Path) -> None:
    result = run(tmp_path / "no such photos", "--out", tmp_path / "pristine.mat")

    assert isinstance(result.exception, QdmrError)
    assert "pristine.mat" in str(result.exception)
