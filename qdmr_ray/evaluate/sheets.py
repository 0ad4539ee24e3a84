"""Draws ``evaluation/NAME/comparison.png``, which compares the stages on a test photograph.

    sheet = comparison_sheet("astronaut", {"input": …, "uda": …, "ground_truth": …}, metrics)

The input, each restored stage and the ground truth have a column each. From top to bottom it shows
the whole photographs with their metrics, the absolute errors, and two magnified details.
"""

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import GROUND_TRUTH, INPUT, label

# Gain of the error maps: errors of 255 / ERROR_GAIN levels and more get the lightest colour. It is
# the same on every sheet, so that sheets can be compared.
ERROR_GAIN = 4
# Scale of the error maps in OKLCH (Ottosson, "A perceptual color space for image processing",
# 2020): lightness rises evenly, the hue (in degrees) stays.
MAP_LIGHTNESS = (0.13, 0.97)
MAP_HUE = 60.0
MAP_CHROMA = 0.15
REGIONS = 2
# Sides in pixels of a region, but at most a third of the photograph's sides, so that two fit.
REGION_WIDTH, REGION_HEIGHT = 128, 96
# A region is enlarged at least by this factor, and more where it is small.
LEAST_ZOOM = 3
COLUMN = REGION_WIDTH * LEAST_ZOOM
DETAIL_HEIGHT = REGION_HEIGHT * LEAST_ZOOM
TALLEST = 512
LEGEND_HEIGHT = 40
MARGIN, GAP = 16, 10
BACKGROUND, TEXT, FAINT = (22, 24, 28), (240, 240, 240), (168, 172, 180)
# Colours of the regions' frames (Okabe and Ito), which the colour-blind can tell apart.
FRAMES = ((86, 180, 233), (240, 228, 66))
_TITLE, _LABEL, _SMALL = 20, 17, 13
Colour = tuple[int, int, int]


def comparison_sheet(
    name: str, images: Mapping[str, np.ndarray], metrics: Mapping[str, Mapping[str, float]]
) -> np.ndarray:
    """Draws the sheet, uint8 ``(H, W, 3)``, titled with the photograph's ``name``.

    ``images`` are uint8 ``(H, W, 3)`` of one size, else QdmrError is raised: ``input``, the stages,
    and ``ground_truth`` last where there is one. ``metrics`` are each image's values by metric, for
    the captions.
    """
    height, width = images[INPUT].shape[:2]
    if {image.shape for image in images.values()} != {(height, width, 3)}:
        raise QdmrError(f"{name}: its pictures differ in size, so they can't be compared")
    truth = images.get(GROUND_TRUTH)
    size = region_size(height, width)
    corners = choose_regions(interest(images[INPUT], truth), size)
    sheet = _Sheet(len(images))
    sheet.texts([f"{name}   {width} x {height}"], _TITLE, TEXT)
    sheet.texts([label(key) for key in images], _LABEL, TEXT, spacing=1.5)
    captions = [metric_caption(metrics.get(key, {})) for key in images]
    if any(captions):
        sheet.texts(captions, _SMALL, FAINT, spacing=1.5)
    sheet.tiles([_overview(image, corners, size) for image in images.values()])
    if truth is not None:
        sheet.texts([f"Absolute error x{ERROR_GAIN}, mean of the channels"], _SMALL, FAINT)
        maps = [_error_tile(i, truth) for key, i in images.items() if key != GROUND_TRUTH]
        sheet.tiles([*maps, _scale_tile(maps[0].height)])
    zoom = min(COLUMN // size[1], DETAIL_HEIGHT // size[0])
    for number, (top, left) in enumerate(corners):
        text = f"Detail {number + 1}, x{zoom}, at ({left}, {top})"
        sheet.texts([text], _SMALL, FRAMES[number])
        parts = [i[top : top + size[0], left : left + size[1]] for i in images.values()]
        sheet.tiles([_detail(part, zoom, FRAMES[number]) for part in parts])
    return sheet.pixels()


def metric_caption(values: Mapping[str, float]) -> str:
    """Writes ``PSNR 27.53 dB   SSIM 0.8412``; an infinite PSNR is that of an identical image."""
    parts = []
    for metric, value in values.items():
        info = metric_info(metric)
        text = f"{info.label} {info.text(value)} {info.unit}".rstrip()
        parts.append("identical" if value == math.inf else text)
    return "   ".join(parts)


def region_size(height: int, width: int) -> tuple[int, int]:
    """Returns the height and width of the details in a photograph."""
    return max(1, min(REGION_HEIGHT, height // 3)), max(1, min(REGION_WIDTH, width // 3))


def interest(image: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """Returns the float64 ``(H, W)`` score by which details are chosen; no method's result enters
    it. It is the absolute error of the input; without a ground truth, its local contrast (the
    length of the gradient)."""
    if truth is not None:
        return absolute_error(image, truth).astype(np.float64)
    grey = image.mean(axis=2, dtype=np.float64)
    across = np.diff(grey, axis=1, append=grey[:, -1:])
    down = np.diff(grey, axis=0, append=grey[-1:])
    return np.hypot(across, down)


def choose_regions(
    score: np.ndarray, size: tuple[int, int], count: int = REGIONS
) -> list[tuple[int, int]]:
    """Returns (top, left) of up to ``count`` disjoint rectangles with the largest sums."""
    height, width = size
    total = np.pad(score, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width]
    sums += total[:-height, :-width]
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count and np.isfinite(sums).any():
        top, left = (int(place) for place in np.unravel_index(sums.argmax(), sums.shape))
        chosen.append((top, left))
        rows = slice(max(0, top - height + 1), top + height)
        sums[rows, max(0, left - width + 1) : left + width] = -np.inf
    return chosen


def absolute_error(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns float32 ``(H, W)`` in [0, 255]: ``|image - truth|``, mean over the channels."""
    return np.abs(image.astype(np.float32) - truth.astype(np.float32)).mean(axis=2)


def error_colours(error: np.ndarray, gain: float = ERROR_GAIN) -> np.ndarray:
    """Colours an absolute error ``(H, W)`` in levels times ``gain``, as uint8 ``(H, W, 3)``."""
    return map_colours()[np.clip(np.rint(error * gain), 0, 255).astype(np.uint8)]


@cache
def map_colours() -> np.ndarray:
    """Returns the colours of every error map, uint8 (256, 3): from dark to light in one hue,
    equally far apart to the eye, so readable by the colour-blind and in grey too."""
    lightness = np.linspace(*MAP_LIGHTNESS, 256)
    # Colours near black and white have no room for chroma.
    chroma = MAP_CHROMA * np.sin(np.pi * np.linspace(0.0, 1.0, 256)) ** 0.8
    hue = math.radians(MAP_HUE)
    lab = np.stack([lightness, chroma * math.cos(hue), chroma * math.sin(hue)], axis=1)
    # Ottosson's matrices from OKLab to linear sRGB.
    cone = np.array(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ cone.T) ** 3 @ rgb.T, 0.0, 1.0)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(curved * 255).astype(np.uint8)


class _Sheet:
    """Rows of text and of pictures, one below the other."""

    def __init__(self, columns: int) -> None:
        self._lefts = [MARGIN + column * (COLUMN + GAP) for column in range(columns)]
        self._rows = [self._row(MARGIN)]

    def _row(self, height: int) -> Image.Image:
        return Image.new("RGB", (self._lefts[-1] + COLUMN + MARGIN, height), BACKGROUND)

    def texts(self, texts: list[str], size: int, colour: Colour, spacing: float = 1.6) -> None:
        self._rows.append(self._row(round(size * spacing)))
        draw, font = ImageDraw.Draw(self._rows[-1]), ImageFont.load_default(size)
        for left, text in zip(self._lefts, texts, strict=False):
            draw.text((left, 0), text, fill=colour, font=font)

    def tiles(self, pictures: list[Image.Image]) -> None:
        self._rows.append(self._row(max(picture.height for picture in pictures) + GAP))
        for left, picture in zip(self._lefts, pictures, strict=True):
            self._rows[-1].paste(picture, (left, 0))

    def pixels(self) -> np.ndarray:
        # The last gap is a part of the margin.
        return np.vstack([np.asarray(row) for row in (*self._rows, self._row(MARGIN - GAP))])


def _overview(
    image: np.ndarray, corners: list[tuple[int, int]], size: tuple[int, int]
) -> Image.Image:
    """Draws the photograph as large as a tile is, with the details' frames."""
    picture = _fitted(Image.fromarray(image), Image.Resampling.LANCZOS)
    scale = picture.width / image.shape[1]
    draw = ImageDraw.Draw(picture)
    for (top, left), colour in zip(corners, FRAMES, strict=False):
        x, y = round(left * scale), round(top * scale)
        right = max(x, round((left + size[1]) * scale) - 1)
        bottom = max(y, round((top + size[0]) * scale) - 1)
        # A dark line around the frame shows it on photographs of any colour.
        draw.rectangle((x - 1, y - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=4)
        draw.rectangle((x, y, right, bottom), outline=colour, width=2)
    return picture


def _error_tile(image: np.ndarray, truth: np.ndarray) -> Image.Image:
    # The error is reduced before it is coloured, so that errors are averaged and not colours.
    error = _fitted(Image.fromarray(absolute_error(image, truth)), Image.Resampling.BOX)
    return Image.fromarray(error_colours(np.asarray(error)))


def _scale_tile(height: int) -> Image.Image:
    """Draws the legend of the error maps, in the ground truth's column, which has no error."""
    tile = Image.new("RGB", (COLUMN, max(height, LEGEND_HEIGHT)), BACKGROUND)
    bar_width = COLUMN - 2 * MARGIN
    levels = np.linspace(0, 255 / ERROR_GAIN, bar_width)
    bar = error_colours(np.tile(levels, (LEGEND_HEIGHT // 2, 1)))
    top = (tile.height - LEGEND_HEIGHT) // 2
    tile.paste(Image.fromarray(bar), (MARGIN, top))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(_SMALL)
    below = top + LEGEND_HEIGHT // 2 + 4
    draw.text((MARGIN, below), "0", fill=FAINT, font=font)
    most = f"{math.ceil(255 / ERROR_GAIN)} or more of 255"
    draw.text((MARGIN + bar_width, below), most, fill=FAINT, font=font, anchor="ra")
    return tile


def _fitted(picture: Image.Image, method: Image.Resampling) -> Image.Image:
    """Fits into COLUMN x TALLEST; a smaller picture is enlarged by a whole factor, unblurred."""
    scale = min(COLUMN / picture.width, TALLEST / picture.height)
    if scale >= 1.0:
        scale, method = int(scale), Image.Resampling.NEAREST
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, method)


def _detail(part: np.ndarray, zoom: int, colour: Colour) -> Image.Image:
    """Draws an enlarged part of a photograph with its frame."""
    picture = Image.fromarray(part.repeat(zoom, axis=0).repeat(zoom, axis=1))
    right, bottom = picture.width - 1, picture.height - 1
    ImageDraw.Draw(picture).rectangle((0, 0, right, bottom), outline=colour, width=2)
    return picture
