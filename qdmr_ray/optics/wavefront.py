"""A lens as wavefront aberrations, and the PSFs that follow from them.

The wavefront is the third-order (Seidel) expansion written with vectors, so that a decentred lens
needs no further terms:

- J. C. Wyant and K. Creath, "Basic Wavefront Aberration Theory for Optical Metrology", Applied
  Optics and Optical Engineering XI (1992), section V: the W_ijk terms and their field dependence.
- K. P. Thompson, "Description of the third-order optical aberrations of near-circular pupil
  optical systems without symmetry", JOSA A 22 (2005) 1389: the same terms about a moved field
  centre, and the constant coma and astigmatism of a misaligned lens.
- J. W. Goodman, Introduction to Fourier Optics, chapter 6: the PSF is the squared magnitude of
  the Fourier transform of the generalised pupil function.

Axes are as in the image, x to the right and y downwards. A field position h is measured from the
middle of the frame in units of half its diagonal (|h| = 1 in the corners), a pupil position p in
units of the pupil's radius.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.optics.psf import PSFGrid, centroid
from qdmr_ray.settings import Settings, setting
from qdmr_ray.untrusted import check_memory

# With a smaller share of the light inside the support, the blur would be visibly cut off.
MINIMUM_ENERGY = 0.9
CENTROID_TOLERANCE_PX = 1e-3
CENTROID_ROUNDS = 8
GREEN = 1
# Samples across a pupil: a PSF of 255 pixels has as many at F/2 with pixels of 4.4 µm. Each takes
# so many bytes in the arrays of three pupils, and in those of a transform.
MOST_SAMPLES, SAMPLE_BYTES = 4096, 3 * 5 * 8 + 4 * 16


@dataclass(frozen=True, kw_only=True)
class OpticsSettings(Settings):
    """A lens by its wavefront aberrations. All W values are waves at ``reference_wavelength``."""

    f_number: float = setting(8.0, "working F-number", minimum=0.5)
    pixel_pitch: float = setting(4.4, "distance of neighbouring pixels", unit="µm", above=0)
    wavelengths: tuple[float, float, float] = setting(
        (610.0, 550.0, 465.0), "wavelength of the R, G, B channel", unit="nm", above=0
    )
    reference_wavelength: float = setting(
        550.0, "wavelength in which the aberrations are given", unit="nm", above=0
    )
    aspect: float = setting(1.5, "width of the frame over its height", above=0)
    rows: int = setting(
        5, "PSFs down the frame, first and last on its edges", minimum=2, maximum=100
    )
    columns: int = setting(
        7, "PSFs across the frame, first and last on its edges", minimum=2, maximum=100
    )
    support: int = setting(31, "width and height of a PSF; odd", unit="px", minimum=3, maximum=255)

    defocus: float = setting(0.0, "W020: |p|², the same everywhere", unit="waves")
    spherical: float = setting(0.0, "W040: |p|⁴, the same everywhere", unit="waves")
    coma: float = setting(
        0.0, "W131: (h·p)|p|², at the corner; positive flares outwards", unit="waves"
    )
    astigmatism: float = setting(0.0, "W222: (h·p)², at the corner", unit="waves")
    field_curvature: float = setting(0.0, "W220: |h|²|p|², at the corner", unit="waves")

    focus_shift: tuple[float, float, float] = setting(
        (0.0, 0.0, 0.0), "chromatic focus: defocus added in R, G, B", unit="waves"
    )
    lateral_colour: tuple[float, float] = setting(
        (0.0, 0.0),
        "shift of R and of B against G at the corner, growing with h; positive is outwards",
        unit="px",
    )

    decentre: tuple[float, float] = setting(
        (0.0, 0.0), "(x, y) where the lens's axis meets the frame", unit="half diagonals"
    )
    tilt: tuple[float, float] = setting(
        (0.0, 0.0), "(x, y) image-plane tilt: defocus growing linearly with h", unit="waves"
    )
    coma_offset: tuple[float, float] = setting(
        (0.0, 0.0), "(x, y) coma that is the same everywhere, of a moved element", unit="waves"
    )
    astigmatism_offset: tuple[float, float] = setting(
        (0.0, 0.0),
        "astigmatism that is the same everywhere: px² − py² and 2·px·py parts",
        unit="waves",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.support % 2 == 0:
            raise SettingsError(f"support must be odd, to have a middle; it is {self.support}")


def wavefront(optics: OpticsSettings, h: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Returns the wavefront error at field position ``h`` over pupil positions ``p``.

    ``h`` is (2,), x and y, with |h| = 1 in the corners; ``p`` is (2, …), with |p| = 1 on the edge.
    The result (…) is in waves at the reference wavelength, without chromatic terms. Sources: Wyant
    & Creath, table of Seidel terms; Thompson 2005 for the field vector about the decentred axis.
    """
    x, y = p
    square = x * x + y * y
    about_axis = h - np.asarray(optics.decentre)
    along_field = about_axis[0] * x + about_axis[1] * y
    focus = (
        optics.defocus
        + optics.field_curvature * float(about_axis @ about_axis)
        + float(np.dot(optics.tilt, h))
    )
    coma = optics.coma * along_field + optics.coma_offset[0] * x + optics.coma_offset[1] * y
    astigmatism = (
        optics.astigmatism * along_field**2
        + optics.astigmatism_offset[0] * (x * x - y * y)
        + optics.astigmatism_offset[1] * 2 * x * y
    )
    return focus * square + optics.spherical * square**2 + coma * square + astigmatism


class _Pupil:
    """The sampled exit pupil of one colour channel, and its transform to PSFs in pixels.

    The pupil's axes are spatial frequencies in cycles per pixel, so its radius is half the
    diffraction cut-off, pixel pitch / (wavelength · F-number) (Goodman, section 6.3.2), and a
    longer wavelength has a wider PSF.
    """

    def __init__(self, optics: OpticsSettings, wavelength: float) -> None:
        self.support = optics.support
        nanometres = 1000.0
        cutoff = optics.pixel_pitch * nanometres / (wavelength * optics.f_number)
        if 2 * self.support * 2 * cutoff > MOST_SAMPLES:
            raise QdmrError(
                f"a pixel_pitch of {optics.pixel_pitch:g} µm at F/{optics.f_number:g} and "
                f"{wavelength:g} nm takes more than {MOST_SAMPLES} samples across the pupil for a "
                f"support of {self.support} px; set a smaller pixel_pitch or support"
            )
        # The intensity has twice the pupil's bandwidth, so it is sampled at twice the cut-off or
        # finer. An odd number of samples per pixel puts a sample on the pixel's middle.
        self.oversampling = max(3, math.ceil(2 * cutoff) | 1)
        # Twice the support, so that the light beyond it does not wrap round into it.
        self.size = scipy.fft.next_fast_len(2 * self.support * self.oversampling)
        _check_room(SAMPLE_BYTES * self.size**2)
        frequency = np.fft.fftfreq(self.size) * self.oversampling
        self.fx, self.fy = np.meshgrid(frequency, frequency)
        self.p = np.stack([self.fx, self.fy]) / (cutoff / 2)
        samples_in_radius = cutoff / 2 * self.size / self.oversampling
        # The pupil's edge is a ramp one sample wide instead of a staircase.
        self.amplitude = np.clip((1 - np.hypot(*self.p)) * samples_in_radius + 0.5, 0, 1)
        self.scale = optics.reference_wavelength / wavelength

    def psf(self, waves: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Returns a wavefront's (k, k) PSF, sum 1, moved by ``shift`` (x, y) pixels; ``waves`` are
        reference waves. Raises QdmrError where the support holds too little of the light."""
        cycles = waves * self.scale + self.fx * shift[0] + self.fy * shift[1]
        field = scipy.fft.fft2(self.amplitude * np.exp(2j * np.pi * cycles))
        intensity = np.fft.fftshift(np.abs(field) ** 2)
        width = self.support * self.oversampling
        first = self.size // 2 - width // 2
        inside = intensity[first : first + width, first : first + width]
        share = inside.sum() / intensity.sum()
        if share < MINIMUM_ENERGY:
            raise QdmrError(
                f"support {self.support} px holds only {share:.0%} of a PSF's light; "
                "set a larger support or smaller aberrations"
            )
        # A pixel gathers the light that falls on its whole area.
        cells = inside.reshape(self.support, self.oversampling, self.support, self.oversampling)
        pixels = cells.sum(axis=(1, 3))
        return pixels / pixels.sum()


def field_positions(optics: OpticsSettings) -> np.ndarray:
    """Returns (rows, columns, 2) field positions (x, y) of the grid, |h| = 1 in the corners."""
    half_height = 1 / math.hypot(optics.aspect, 1)
    x = np.linspace(-1, 1, optics.columns) * optics.aspect * half_height
    y = np.linspace(-1, 1, optics.rows) * half_height
    return np.stack(np.meshgrid(x, y), axis=-1)


def psf_grid(optics: OpticsSettings) -> PSFGrid:
    """Returns the PSFs of a lens over its frame. Each position's green PSF is moved so that its
    centre of light is on the middle pixel, and red and blue move with it: the clean photograph
    stays aligned with the aberrated one, and only lateral colour remains between the channels.
    Raises QdmrError where the support is too small for the aberrations, or more memory is needed
    than is free."""
    shape = (optics.rows, optics.columns, 3, optics.support, optics.support)
    # As single and twice as double numbers, when the sums are checked.
    _check_room(math.prod(shape) * 20)
    pupils = [_Pupil(optics, wavelength) for wavelength in optics.wavelengths]
    lateral = (optics.lateral_colour[0], 0.0, optics.lateral_colour[1])
    positions = field_positions(optics)
    grid = np.empty(shape, np.float32)
    for row, column in np.ndindex(optics.rows, optics.columns):
        h = positions[row, column]
        waves = [
            wavefront(optics, h, pupil.p) + focus * (pupil.p**2).sum(axis=0)
            for pupil, focus in zip(pupils, optics.focus_shift, strict=True)
        ]
        shift = _centring_shift(pupils[GREEN], waves[GREEN])
        outwards = h - np.asarray(optics.decentre)
        for channel, pupil in enumerate(pupils):
            moved = shift + lateral[channel] * outwards
            grid[row, column, channel] = pupil.psf(waves[channel], moved)
    return PSFGrid(grid)


def _check_room(size: int) -> None:
    try:
        check_memory(size, "the lens's grid of PSFs")
    except OSError as error:
        raise QdmrError(f"{error.strerror}; set a smaller support, or fewer rows") from None


def _centring_shift(pupil: _Pupil, waves: np.ndarray) -> np.ndarray:
    """Returns the (2,) pixels by which a PSF must move for its centre of light to be on the middle
    pixel; iterates, because moving the PSF changes what the support cuts off."""
    shift = np.zeros(2)
    for _ in range(CENTROID_ROUNDS):
        miss = centroid(pupil.psf(waves, shift))
        shift = shift - miss
        if np.abs(miss).max() < CENTROID_TOLERANCE_PX:
            break
    return shift
