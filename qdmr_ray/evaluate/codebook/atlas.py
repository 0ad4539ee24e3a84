"""The picture of a codebook: every code decoded, from the source's own to the target's own."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qdmr_ray.evaluate.codebook.usage import GROUP_LABELS, GROUPS, CodebookUsage

# Lengths in pixels.
WIDTH = 1152
MARGIN = 16
GAP = 4
BAR_HEIGHT = 5
HEAD_HEIGHT, CAPTION_HEIGHT = 54, 30
TITLE_SIZE, TEXT_SIZE = 16, 13
# The words at the top need this width.
LEAST_WIDTH = 540
# A row has at least this many tiles, so that a small codebook's don't grow without bound, and at
# least this part of a square's, so that a large codebook's sheet is about as wide as high.
FEWEST_COLUMNS = 16
LEAST_PART_OF_SQUARE = 0.9
BACKGROUND, TRACK = (24, 26, 30), (46, 50, 58)
BRIGHT, DIM = (232, 234, 238), (158, 166, 178)
SOURCE_COLOUR, TARGET_COLOUR = (116, 169, 255), (79, 207, 162)


def atlas_picture(tiles: np.ndarray, usage: CodebookUsage) -> np.ndarray:
    """Draws all codes as tiles, sorted by target share and separated by group; uint8 (H, W, 3).

    ``tiles`` uint8 (K, h, w, 3) are the decoded codes. Under each tile, the bar to the left shows
    how often the source chooses the code, the bar to the right how often the target does. All bars
    share a square-root scale, since frequencies of codes differ by factors of hundreds.
    """
    height, width = tiles.shape[1:3]
    scale, columns = _layout(width, usage.codes)
    tile_height, tile_width = height * scale, width * scale
    row_height = tile_height + 1 + BAR_HEIGHT + 2 * GAP
    order, of_code = usage.order(), usage.groups()
    members = {group: [code for code in order if of_code[code] == group] for group in GROUPS}
    shown = {group: codes for group, codes in members.items() if codes}
    rows = sum(math.ceil(len(codes) / columns) for codes in shown.values())
    size = (
        max(LEAST_WIDTH, columns * (tile_width + GAP) - GAP + 2 * MARGIN),
        HEAD_HEIGHT + len(shown) * CAPTION_HEIGHT + rows * row_height + MARGIN,
    )
    sheet = Image.new("RGB", size, BACKGROUND)
    _head(sheet, usage)
    top = HEAD_HEIGHT
    frequencies = np.stack([usage.source.frequencies, usage.target.frequencies], axis=1)
    shares = np.sqrt(frequencies / max(frequencies.max(), 1e-12))
    # A code that was chosen has a bar of at least one pixel.
    lengths = np.ceil(tile_width // 2 * shares).astype(int)
    for group, codes in shown.items():
        text = f"{GROUP_LABELS[group].capitalize()}: {len(codes):,}"
        _write(sheet, (MARGIN, top + CAPTION_HEIGHT - 9), text, BRIGHT)
        top += CAPTION_HEIGHT
        for index, code in enumerate(codes):
            row, column = divmod(index, columns)
            place = MARGIN + column * (tile_width + GAP), top + row * row_height
            tile = Image.fromarray(tiles[code]).resize(
                (tile_width, tile_height), Image.Resampling.NEAREST
            )
            sheet.paste(tile, place)
            _bars(sheet, (place[0], place[1] + tile_height + 1), tile_width, lengths[code])
        top += math.ceil(len(codes) / columns) * row_height
    return np.asarray(sheet)


def _layout(width: int, codes: int) -> tuple[int, int]:
    """Returns the whole factor by which tiles are enlarged, and the number of tiles in a row."""
    wanted = max(FEWEST_COLUMNS, math.ceil(LEAST_PART_OF_SQUARE * math.sqrt(codes)))
    room = WIDTH - 2 * MARGIN + GAP
    scale = max(1, (room // wanted - GAP) // width)
    return scale, max(1, room // (width * scale + GAP))


def _head(sheet: Image.Image, usage: CodebookUsage) -> None:
    title = f"{usage.codes:,} codes, each decoded, by target share"
    _write(sheet, (MARGIN, 26), title, BRIGHT, TITLE_SIZE)
    x = MARGIN
    for text, colour in (
        ("under each code, its use by source (left)", SOURCE_COLOUR),
        ("and target (right)", TARGET_COLOUR),
        ("photographs, on a square-root scale", DIM),
    ):
        x = _write(sheet, (x, 46), text, colour) + 5


def _bars(sheet: Image.Image, place: tuple[int, int], width: int, lengths: np.ndarray) -> None:
    draw = ImageDraw.Draw(sheet)
    (left, top), (source, target) = place, lengths.tolist()
    middle, bottom = left + width // 2, top + BAR_HEIGHT - 1
    draw.rectangle((left, top, left + width - 1, bottom), fill=TRACK)
    if source:
        draw.rectangle((middle - source, top, middle - 1, bottom), fill=SOURCE_COLOUR)
    if target:
        draw.rectangle((middle, top, middle + target - 1, bottom), fill=TARGET_COLOUR)


def _write(
    sheet: Image.Image,
    place: tuple[int, int],
    text: str,
    colour: tuple[int, int, int],
    size: int = TEXT_SIZE,
) -> int:
    """Draws text from its left end on the base line; returns the x where it ends."""
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(sheet).text(place, text, fill=colour, font=font, anchor="ls")
    return place[0] + math.ceil(font.getlength(text))
