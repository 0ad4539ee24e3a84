"""A camera turns light into a photograph: sensor noise, then its image signal processor (ISP).

Linear light is relative to the brightest white that the camera records: 0 is black, 1 is white.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from qdmr_ray.settings import Settings, setting

# IEC 61966-2-1 (sRGB): the straight part near black, and the power above it.
SRGB_SLOPE = 12.92
SRGB_OFFSET = 0.055
SRGB_EXPONENT = 2.4
SRGB_LINEAR_KNEE = 0.0031308
WHITE_LEVEL = 255


@dataclass(frozen=True, kw_only=True)
class CameraSettings(Settings):
    """Glare, sensor and processing. The defaults are a neutral camera with little noise."""

    glare: float = setting(
        0.0,
        "veiling glare: share of the light that spreads evenly over the frame",
        minimum=0,
        maximum=1,
    )
    sensor_response: tuple[float, float, float] = setting(
        (0.5, 1.0, 0.6), "raw R, G, B values of a white object", above=0, maximum=1
    )
    full_well: float = setting(
        20000.0, "electrons in a pixel at raw value 1: sets the shot noise", above=0
    )
    read_noise: float = setting(3.0, "standard deviation of a reading", unit="electrons", minimum=0)
    white_balance: tuple[float, float, float] = setting(
        (2.0, 1.0, 5 / 3),
        "gain on raw R, G, B; 1 / sensor_response is neutral, anything else a colour cast",
        above=0,
    )
    denoise: float = setting(
        0.0, "standard deviation of the Gaussian smoothing of linear light", unit="px", minimum=0
    )
    gamma: float | None = setting(
        None, "power of the tone curve (out = in^(1/gamma)); null is the sRGB curve", above=0
    )
    sharpen: float = setting(0.0, "share of the unsharp mask added after the tone curve", minimum=0)
    sharpen_radius: float = setting(
        1.0, "standard deviation of the unsharp mask's blur", unit="px", above=0
    )


def srgb_to_linear(image: np.ndarray) -> np.ndarray:
    """Converts uint8 (…) sRGB values to float32 linear light in [0, 1] (IEC 61966-2-1)."""
    value = np.arange(WHITE_LEVEL + 1) / WHITE_LEVEL
    knee = SRGB_LINEAR_KNEE * SRGB_SLOPE
    power = ((value + SRGB_OFFSET) / (1 + SRGB_OFFSET)) ** SRGB_EXPONENT
    table = np.where(value <= knee, value / SRGB_SLOPE, power)
    return table.astype(np.float32)[image]


def tone_curve(linear: np.ndarray, gamma: float | None) -> np.ndarray:
    """Maps linear light in [0, 1] to display values in [0, 1] by a power; ``None`` is sRGB."""
    if gamma is not None:
        return linear ** (1 / gamma)
    power = (1 + SRGB_OFFSET) * linear ** (1 / SRGB_EXPONENT) - SRGB_OFFSET
    return np.where(linear <= SRGB_LINEAR_KNEE, linear * SRGB_SLOPE, power)


def add_glare(light: np.ndarray, glare: float) -> np.ndarray:
    """Spreads the share ``glare`` of each channel's light (H, W, 3) evenly; keeps the mean."""
    return (1 - glare) * light + glare * light.mean(axis=(0, 1))


def expose(light: np.ndarray, camera: CameraSettings, random: np.random.Generator) -> np.ndarray:
    """Adds Poisson shot and Gaussian read noise to (H, W, 3) linear light: raw values in [0, 1]."""
    signal = np.clip(light * np.asarray(camera.sensor_response, np.float32), 0, 1)
    electrons = random.poisson(signal.astype(np.float64) * camera.full_well)
    reading = electrons + camera.read_noise * random.standard_normal(signal.shape)
    return np.clip(reading / camera.full_well, 0, 1).astype(np.float32)


def develop(raw: np.ndarray, camera: CameraSettings) -> np.ndarray:
    """Turns (H, W, 3) raw values in [0, 1] into a uint8 photograph: white balance, clipping,
    denoising, tone curve, unsharp mask, rounding."""
    light = np.clip(raw * np.asarray(camera.white_balance, np.float32), 0, 1)
    if camera.denoise > 0:
        light = gaussian_filter(light, (camera.denoise, camera.denoise, 0))
    display = tone_curve(light, camera.gamma)
    if camera.sharpen > 0:
        radius = camera.sharpen_radius
        smooth = gaussian_filter(display, (radius, radius, 0))
        display = display + camera.sharpen * (display - smooth)
    return np.rint(np.clip(display, 0, 1) * WHITE_LEVEL).astype(np.uint8)
