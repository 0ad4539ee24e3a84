"""Lens model: wavefront, PSF grids and their files, lens files."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.optics.camera import CameraSettings
from qdmr_ray.optics.lens import load_lens, load_lenses, shipped_lenses
from qdmr_ray.optics.psf import PSFGrid, centroid
from qdmr_ray.optics.wavefront import OpticsSettings, field_positions, psf_grid, wavefront

SHIPPED = ["manufactured", "prescription"]


def spread(psf: np.ndarray) -> float:
    """RMS distance of the light from its centre, in pixels."""
    offsets = np.arange(psf.shape[-1]) - psf.shape[-1] // 2
    x, y = centroid(psf)
    distance = (offsets[None, :] - x) ** 2 + (offsets[:, None] - y) ** 2
    return float(np.sqrt((psf * distance).sum() / psf.sum()))


def uniform_psf(rows: int = 2, columns: int = 2, k: int = 3) -> np.ndarray:
    return np.full((rows, columns, 3, k, k), 1 / k**2)


def test_a_perfect_lens_has_the_textbook_transfer_function() -> None:
    # Cut-off at half a cycle per pixel, so that sampling adds no aliases.
    optics = OpticsSettings(f_number=8.0, pixel_pitch=2.2, wavelengths=(550, 550, 550), support=63)
    psf = psf_grid(optics).psf[2, 3, 1]
    frequency = np.arange(psf.shape[0] // 2 + 1) / psf.shape[0]
    measured = np.abs(np.fft.fft(psf.sum(axis=0)))[: len(frequency)]
    # Goodman, Introduction to Fourier Optics, eq. 6-31, times the pixel's own box.
    nu = np.minimum(frequency / 0.5, 1)
    diffraction = 2 / np.pi * (np.arccos(nu) - nu * np.sqrt(1 - nu**2))
    np.testing.assert_allclose(measured, diffraction * np.sinc(frequency), atol=0.02)


def test_longer_wavelengths_blur_more() -> None:
    red, green, blue = psf_grid(OpticsSettings(f_number=16.0)).psf[2, 3]
    assert red.max() < green.max() < blue.max()


@pytest.mark.parametrize(
    ("settings", "h", "p", "waves"),
    [
        ({"defocus": 2.0}, (0.3, 0.4), (0.6, 0.0), 2 * 0.36),
        ({"spherical": 2.0}, (0.3, 0.4), (0.0, 0.5), 2 * 0.0625),
        ({"coma": 2.0}, (0.5, 0.0), (0.5, 0.5), 2 * 0.5 * 0.5 * 0.5),
        ({"coma": 2.0}, (0.0, 0.5), (0.5, 0.0), 0.0),
        ({"astigmatism": 2.0}, (0.0, 0.5), (0.7, 0.6), 2 * 0.3**2),
        ({"field_curvature": 2.0}, (0.3, 0.4), (0.6, 0.0), 2 * 0.25 * 0.36),
        ({"coma": 2.0, "decentre": (0.5, 0.0)}, (0.5, 0.0), (1.0, 0.0), 0.0),
        ({"tilt": (1.0, 2.0)}, (0.5, -0.25), (1.0, 0.0), 0.0),
        ({"tilt": (1.0, 2.0)}, (0.5, 0.5), (0.0, 1.0), 1.5),
        ({"coma_offset": (0.0, 2.0)}, (0.9, 0.1), (0.0, -1.0), -2.0),
        ({"astigmatism_offset": (2.0, 0.0)}, (0.0, 0.0), (0.0, 1.0), -2.0),
        ({"astigmatism_offset": (0.0, 2.0)}, (0.0, 0.0), (0.5, 0.5), 1.0),
    ],
)
def test_wavefront_terms(
    settings: dict[str, object], h: tuple[float, float], p: tuple[float, float], waves: float
) -> None:
    found = wavefront(OpticsSettings(**settings), np.array(h), np.array(p))
    assert float(found) == pytest.approx(waves, abs=1e-12)


def test_corners_are_at_field_one_and_the_middle_at_zero() -> None:
    positions = field_positions(OpticsSettings())
    assert np.linalg.norm(positions[0, 0]) == pytest.approx(1)
    assert np.linalg.norm(positions[2, 3]) == pytest.approx(0)
    assert positions[0, -1, 0] > 0
    assert positions[0, -1, 1] < 0


def test_positive_coma_flares_outwards() -> None:
    grid = psf_grid(OpticsSettings(coma=1.5)).psf
    # The centre of light is on the middle pixel, so the bright core lies towards the axis.
    _, right_peak = np.unravel_index(grid[2, -1, 1].argmax(), (31, 31))
    _, left_peak = np.unravel_index(grid[2, 0, 1].argmax(), (31, 31))
    assert right_peak < 15 < left_peak


@pytest.mark.parametrize("term", ["coma", "astigmatism", "field_curvature"])
def test_field_terms_leave_the_middle_sharp_and_soften_the_corners(term: str) -> None:
    perfect = psf_grid(OpticsSettings()).psf
    grid = psf_grid(OpticsSettings(**{term: 0.8})).psf
    np.testing.assert_allclose(grid[2, 3], perfect[2, 3], atol=1e-6)
    assert spread(grid[2, 3, 1]) < spread(grid[2, 5, 1]) < spread(grid[0, 6, 1])


def test_chromatic_focus_blurs_the_channel_it_names() -> None:
    grid = psf_grid(OpticsSettings(focus_shift=(1.0, 0.0, 0.0))).psf
    assert spread(grid[2, 3, 0]) > 1.5 * spread(grid[2, 3, 2])


def test_lateral_colour_moves_red_and_blue_outwards_by_pixels_at_the_corner() -> None:
    optics = OpticsSettings(lateral_colour=(1.5, -0.75))
    corner = psf_grid(optics).psf[0, 0]
    outwards = field_positions(optics)[0, 0]
    # The support cuts the weak outer rings of a moved PSF, which pulls its centre back a little.
    np.testing.assert_allclose(centroid(corner[0]), 1.5 * outwards, atol=0.05)
    np.testing.assert_allclose(centroid(corner[1]), 0, atol=0.01)
    np.testing.assert_allclose(centroid(corner[2]), -0.75 * outwards, atol=0.05)


def test_too_much_blur_for_the_support_is_refused() -> None:
    with pytest.raises(QdmrError, match="support 11 px holds only"):
        psf_grid(OpticsSettings(defocus=3.0, support=11))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_lenses_are_normalised_centred_and_soft_in_the_corners(name: str) -> None:
    psf = load_lens(name).grid.psf
    np.testing.assert_allclose(psf.sum(axis=(3, 4)), 1, atol=1e-5)
    worst = max(
        np.abs(centroid(psf[row, column, 1])).max() for row, column in np.ndindex(psf.shape[:2])
    )
    assert worst < 0.01
    assert spread(psf[0, 0, 1]) > 1.2 * spread(psf[2, 3, 1])


def test_the_designed_lens_is_symmetric_and_the_manufactured_one_is_not() -> None:
    assert shipped_lenses() == SHIPPED
    mirrored = {}
    for name in SHIPPED:
        psf = load_lens(name).grid.psf
        mirrored[name] = float(np.abs(psf - psf[:, ::-1, :, :, ::-1]).max())
    assert mirrored["prescription"] < 1e-4
    assert mirrored["manufactured"] > 1e-2


def test_a_grid_comes_back_from_its_file(tmp_path: Path) -> None:
    grid = psf_grid(OpticsSettings(coma=0.5, rows=2, columns=3))
    grid.save(tmp_path / "lens.npz")
    np.testing.assert_allclose(PSFGrid.load(tmp_path / "lens.npz").psf, grid.psf, rtol=1e-6)
    lens = load_lens(str(tmp_path / "lens.npz"))
    assert lens.name == "lens"
    assert lens.grid.support == 31
    assert [path.name for path in tmp_path.iterdir()] == ["lens.npz"]


def test_a_users_file_needs_only_the_psfs(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", psf=uniform_psf() * 1.005)
    psf = PSFGrid.load(tmp_path / "own.npz").psf
    assert psf.dtype == np.float32
    np.testing.assert_allclose(psf.sum(axis=(3, 4)), 1, rtol=1e-6)


def _with(index: tuple[int, ...], value: float) -> np.ndarray:
    psf = uniform_psf()
    psf[index] = value
    return psf


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kernels": uniform_psf()}, "array named 'psf'; found kernels"),
        ({"psf": uniform_psf()[0]}, "shape"),
        ({"psf": uniform_psf()[:, :, :2]}, "shape"),
        ({"psf": uniform_psf(k=4)}, "odd"),
        ({"psf": _with((1, 0, 2, 0, 0), np.nan)}, "finite"),
        ({"psf": _with((1, 0, 2, 0, 0), -0.1)}, "negative"),
        ({"psf": _with((1, 0, 2, 0, 0), 0.5)}, "row 1, column 0, channel B sums to"),
        ({"psf": uniform_psf().astype(object)}, "not a readable"),
        ({"psf": uniform_psf(), "version": 2}, "version 2"),
    ],
)
def test_malformed_grids_are_refused_by_name(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **content)
    with pytest.raises(QdmrError, match=message) as caught:
        load_lens(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not a zip file", "truncated"])
def test_files_that_are_no_npz_are_refused(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "bad.npz"
    if content == "truncated":
        np.savez(path, psf=uniform_psf())
        path.write_bytes(path.read_bytes()[:-40])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(QdmrError, match=r"bad\.npz: "):
        load_lens(str(path))


def test_a_lens_file_gives_the_lens_it_describes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optics: {coma: 0.5, rows: 2, columns: 2}\ncamera: {glare: 0.1}\n")
    lens = load_lens(str(path))
    assert lens.name == "mine"
    assert lens.camera.glare == 0.1
    expected = psf_grid(replace(OpticsSettings(), coma=0.5, rows=2, columns=2))
    np.testing.assert_array_equal(lens.grid.psf, expected.psf)


def test_a_lens_file_may_point_to_measured_psfs_beside_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "psfs.npz", psf=uniform_psf())
    (tmp_path / "mine.yaml").write_text("psf_grid: psfs.npz\ncamera: {gamma: 2.0}\n")
    lens = load_lens(str(tmp_path / "mine.yaml"))
    assert lens.camera.gamma == 2.0
    assert lens.grid.psf.shape == (2, 2, 3, 3, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optics: {comma: 0.5}", r"unknown setting optics\.comma; did you mean optics\.coma\?"),
        ("optics: {}\ncamera: {qqq: 1}", r"unknown setting camera\.qqq; known: glare"),
        ("optics: {coma: much}", "optics.coma"),
        ("optics: {support: 30}", "support must be odd"),
        ("optics: {f_number: -1}", "f_number must be at least"),
        ("optics: {defocus: .nan}", "finite"),
        ("optics: {defocus: 5.0}", "larger support"),
        ("optics: {lateral_colour: [1, 2, 3]}", "optics.lateral_colour"),
        ("optics: {}\npsf_grid: a.npz", "either optics or psf_grid"),
        ("camera: {glare: 0.1}", "either optics or psf_grid"),
        ("psf_grid: nowhere.npz", "no such file"),
        ("", "mine.yaml"),
        ("[1, 2]", "mine.yaml"),
        ("optics: {coma: 1", "cannot be read as YAML"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_wrong_lens_files_get_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(QdmrError, match=message) as caught:
        load_lens(str(path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optic: {}")
    with pytest.raises(SettingsError):
        load_lens(str(tmp_path / "mine.yaml"))


def test_an_unknown_lens_names_the_shipped_ones() -> None:
    with pytest.raises(QdmrError, match="'fisheye' is not known; use manufactured or prescription"):
        load_lens("fisheye")
    with pytest.raises(QdmrError, match=r"nowhere\.yaml: no such file"):
        load_lens("nowhere.yaml")


def test_field_diagonal_does_not_depend_on_the_aspect() -> None:
    for aspect in (1.0, 2.0):
        corner = field_positions(OpticsSettings(aspect=aspect))[-1, -1]
        assert math.hypot(*corner) == pytest.approx(1)


def test_a_wavefront_bends_light_of_every_wavelength_by_the_same_distance() -> None:
    # Pupil radius in cycles per pixel and phase both go with 1 / wavelength, so the geometric
    # displacement is the same: centring green centres red and blue too.
    corner = psf_grid(OpticsSettings(coma=1.0)).psf[0, 0]
    for channel in (0, 2):
        np.testing.assert_allclose(centroid(corner[channel]), 0, atol=0.06)


@pytest.mark.parametrize("settings", [OpticsSettings, CameraSettings])
def test_the_documentation_names_every_setting(settings: type) -> None:
    text = (Path(__file__).parents[2] / "datasets/README.md").read_text(encoding="utf-8")
    missing = [f.name for f in dataclasses.fields(settings) if f"`{f.name}`" not in text]
    assert not missing


def test_a_folder_of_lenses_holds_each_once(tmp_path: Path) -> None:
    folder = tmp_path / "lenses"
    folder.mkdir()
    with pytest.raises(QdmrError, match="lenses: holds no lens"):
        load_lenses([str(folder)])
    grid = PSFGrid(np.full((1, 1, 3, 3, 3), 1 / 9))
    for name in ("b", "measured"):
        grid.save(folder / f"{name}.npz")
    (folder / "a.yaml").write_text("psf_grid: measured.npz")
    (folder / "notes.txt").write_text("not a lens")
    # The PSFs behind a.yaml are no lens of their own.
    names = [lens.name for lens in load_lenses([str(folder), "prescription"])]
    assert names == ["a", "b", "prescription"]
    with pytest.raises(QdmrError, match=r"lenses/b\.npz: has the same name as .*lenses/b\.npz"):
        load_lenses([str(folder), str(folder / "b.npz")])
    (folder / "c.yaml").write_text("optic: {}")
    with pytest.raises(SettingsError, match="optic"):
        load_lenses([str(folder)])
