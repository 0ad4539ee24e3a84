"""Contact sheets for people: the networks' input and output, and the codebook atlas."""

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from qdmr_ray.photographs.decode import to_photograph

GAP = 4
CAPTION_HEIGHT = 14
BACKGROUND = (24, 26, 30)
CAPTION_COLOUR = (230, 230, 230)
# A sheet is enlarged by a whole factor to at least this width, so that small crops can be seen.
READABLE_WIDTH = 720


def sample_sheet(pictures: Mapping[str, Tensor], count: int) -> np.ndarray:
    """Returns a column per picture under its caption, a row per sample; uint8 (H, W, 3).
    ``pictures`` holds images (B, 3, h, w) of one size; the first ``count`` of each are shown."""
    first = next(iter(pictures.values()))
    rows, (height, width) = min(count, len(first)), first.shape[-2:]
    scale = max(1, math.ceil(READABLE_WIDTH / (len(pictures) * (width + GAP))))
    height, width = height * scale, width * scale
    size = (len(pictures) * (width + GAP) + GAP, rows * (height + GAP) + CAPTION_HEIGHT + GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, (name, images) in enumerate(pictures.items()):
        left = GAP + column * (width + GAP)
        draw.text((left, 1), name.replace("_", " "), fill=CAPTION_COLOUR)
        for row in range(rows):
            tile = Image.fromarray(to_photograph(images[row])).resize((width, height), 0)
            sheet.paste(tile, (left, CAPTION_HEIGHT + row * (height + GAP)))
    return np.asarray(sheet)


def atlas_sheet(codes: Tensor) -> np.ndarray:
    """Returns decoded codes (K, 3, h, w) in reading order, nearly square; uint8 (H, W, 3)."""
    count, _, height, width = codes.shape
    columns = math.ceil(math.sqrt(count))
    cell_height, cell_width = height + 1, width + 1
    shape = (math.ceil(count / columns) * cell_height + 1, columns * cell_width + 1, 3)
    sheet = np.full(shape, BACKGROUND, dtype=np.uint8)
    for index, code in enumerate(codes):
        row, column = divmod(index, columns)
        top, left = 1 + row * cell_height, 1 + column * cell_width
        sheet[top : top + height, left : left + width] = to_photograph(code)
    return sheet
