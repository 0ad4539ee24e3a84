"""The contact sheet shows the right pictures at the right places, and says what they are."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from qdmr_ray.data.contact_sheet import contact_sheet, size_histogram
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import write_png

RED, GREEN, BLUE = (250, 20, 30), (20, 240, 40), (30, 50, 230)
YELLOW, PINK, CYAN = (240, 230, 10), (250, 90, 200), (10, 220, 235)


def flat(colour: Sequence[int], width: int = 300, height: int = 200) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def noise(seed: int, width: int = 480, height: int = 320) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def single(image: np.ndarray, name: str = "photo") -> SimpleNamespace:
    return SimpleNamespace(name=name, image=image, ground_truth=None)


def paired(image: np.ndarray, truth: np.ndarray, name: str = "photo") -> SimpleNamespace:
    return SimpleNamespace(name=name, image=image, ground_truth=truth)


class Records:
    """A reader of records in memory; an error among them is raised when it is read."""

    def __init__(self, **sets: Sequence[Any]) -> None:
        self.sets: Mapping[str, Sequence[Any]] = sets

    def count(self, name: str) -> int:
        if name not in self.sets:
            raise QdmrError(f"no {name} set")
        return len(self.sets[name])

    def read(self, name: str, index: int) -> SimpleNamespace:
        record = self.sets[name][index]
        if isinstance(record, Exception):
            raise record
        return record


class Box(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        return self.right - self.left, self.bottom - self.top

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def boxes(sheet: np.ndarray, colour: Sequence[int]) -> list[Box]:
    """The rectangles of one colour from top to bottom, left to right."""
    labels, _ = ndimage.label((sheet == np.array(colour, dtype=np.uint8)).all(axis=2))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        assert (labels[rows, columns] == number).all(), "not a rectangle"
        found.append(Box(columns.start, rows.start, columns.stop, rows.stop))
    return sorted(found, key=lambda box: (box.top, box.left))


def places(sheet: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """(left, top) of all places at which the page holds exactly this picture."""
    height, width = picture.shape[:2]
    first = (sheet == picture[0, 0]).all(axis=2)[: -height or None, : -width or None]
    return [
        (int(left), int(top))
        for top, left in zip(*np.nonzero(first), strict=True)
        if np.array_equal(sheet[top : top + height, left : left + width], picture)
    ]


class Text(NamedTuple):
    text: str
    left: float
    right: float


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """All that is written while a test draws, in the order of writing."""
    written: list[Text] = []
    draw = ImageDraw.ImageDraw.text

    def record(self: Any, xy: Any, text: str, *args: Any, **options: Any) -> None:
        assert options["anchor"][0] == "l"
        if text:
            written.append(Text(text, xy[0], xy[0] + options["font"].getlength(text)))
        draw(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return written


def test_halves_of_a_pair_touch_and_the_next_pair_keeps_a_gap() -> None:
    sheet = contact_sheet(
        Records(source=[paired(flat(RED), flat(GREEN)), paired(flat(BLUE), flat(YELLOW))])
    )
    red, green = boxes(sheet, RED)[0], boxes(sheet, GREEN)[0]
    blue, yellow = boxes(sheet, BLUE)[0], boxes(sheet, YELLOW)[0]
    assert {box.size for box in (red, green, blue, yellow)} == {(240, 160)}
    assert (red.right, red.top) == (green.left, green.top)
    assert (blue.right, blue.top) == (yellow.left, yellow.top)
    assert blue.top == red.top
    assert 4 <= blue.left - green.right <= 20


def test_source_is_left_of_target_in_the_same_rows_and_test_is_below() -> None:
    sheet = contact_sheet(
        Records(
            source=[paired(flat(RED), flat(GREEN))] * 4,
            # Higher than the source's: its rows move with the target's.
            target=[single(flat(BLUE, 200, 300))] * 8,
            test=[paired(flat(YELLOW), flat(PINK))] * 9,
        ),
        rows=2,
    )
    # At 1:1 they are 240 x 200 and 200 x 240.
    red, blue, yellow = (
        [box for box in boxes(sheet, colour) if box.size in {(240, 160), (160, 240)}]
        for colour in (RED, BLUE, YELLOW)
    )
    assert (len(red), len(blue)) == (4, 8)
    assert [box.centre[1] for box in red] == [blue[0].centre[1]] * 2 + [blue[4].centre[1]] * 2
    assert max(box.right for box in boxes(sheet, GREEN)) < min(box.left for box in blue)
    assert min(box.top for box in yellow) > max(box.bottom for box in boxes(sheet, BLUE))
    # The test set has the whole width, and keeps to the columns above it.
    assert len({box.top for box in yellow}) == 1
    assert [box.left for box in yellow[:2]] == [box.left for box in red[:2]]
    assert yellow[2].left == blue[0].left - 40
    # Its one row of four holds as many as the source's two rows of two.
    assert len(yellow) == 4


def test_portrait_landscape_and_panorama_are_centred_in_equal_cells() -> None:
    sheet = contact_sheet(
        Records(
            target=[
                single(flat(RED, 600, 400)),
                single(flat(GREEN, 400, 600)),
                single(flat(BLUE, 1200, 100)),
                single(flat(YELLOW, 6, 900)),
            ]
        )
    )
    shown = [boxes(sheet, colour)[0] for colour in (RED, GREEN, BLUE, YELLOW)]
    assert [box.size for box in shown] == [(240, 160), (160, 240), (240, 20), (2, 240)]
    assert len({box.centre[1] for box in shown}) == 1
    steps = np.diff([box.centre[0] for box in shown])
    assert (steps == steps[0]).all()
    assert steps[0] > 240


def test_rows_are_as_high_as_their_highest_photograph() -> None:
    photographs = [single(flat(RED, 480, 120)), single(flat(GREEN, 480, 360))]
    sheet = contact_sheet(Records(target=photographs), columns=1)
    red, green = boxes(sheet, RED)[0], boxes(sheet, GREEN)[0]
    assert (red.size, green.size) == ((240, 60), (240, 180))
    assert 30 < green.top - red.bottom < 60


def test_records_are_chosen_evenly_with_the_first_and_the_last(texts: list[Text]) -> None:
    colours = [(index, 255 - index, 128) for index in range(101)]
    sheet = contact_sheet(
        Records(target=[single(flat(colour, 64, 64)) for colour in colours]),
        columns=3,
        rows=2,
        thumbnail=64,
    )
    shown = [index for index, colour in enumerate(colours) if boxes(sheet, colour)]
    assert shown == [0, 20, 40, 60, 80, 100]
    corners = [boxes(sheet, colours[index])[0][:2] for index in shown]
    assert corners == sorted(corners, key=lambda corner: (corner[1], corner[0]))
    assert len({left for left, _ in corners}) == 3
    assert [text.text for text in texts[:2]] == [
        "target: 101 photographs",
        "6 shown, spread evenly",
    ]


def test_every_record_is_shown_where_there_is_room(texts: list[Text]) -> None:
    colours = [(index * 30, 200, 90) for index in range(5)]
    sheet = contact_sheet(Records(target=[single(flat(colour)) for colour in colours]), columns=2)
    assert all(boxes(sheet, colour) for colour in colours)
    assert texts[1].text == "all shown"


def test_captions_name_index_and_size(texts: list[Text]) -> None:
    contact_sheet(
        Records(
            source=[paired(flat(RED, 300, 200), flat(RED, 300, 200), "a")],
            target=[single(flat(RED, 200, 310), "b"), single(flat(RED, 1000, 10), "c")],
        )
    )
    assert [text.text for text in texts] == [
        "source: 1 pair",
        "all shown   aberrated | ground truth",
        "target: 2 photographs",
        "all shown",
        *("a", "#0   300 x 200"),
        *("b", "#0   200 x 310"),
        *("c", "#1   1000 x 10"),
        "1:1, pixel for pixel   aberrated | ground truth",
        "1:1, pixel for pixel",
        # Where a photograph is flat, the first corner is as good as any.
        *("a", "#0   top left, at x 0, y 0"),
        *("a", "#0   centre, at x 30, y 0"),
        *("b", "#0   top left, at x 0, y 0"),
        *("b", "#0   centre, at x 0, y 35"),
        *("c", "#1   top left, at x 0, y 0"),
        *("c", "#1   centre, at x 380, y 0"),
    ]


def test_thumbnails_are_pillows_lanczos() -> None:
    image, truth = noise(1), noise(2)
    sheet = contact_sheet(Records(source=[paired(image, truth)]))
    halves = [
        Image.fromarray(each).resize((240, 160), Image.Resampling.LANCZOS)
        for each in (image, truth)
    ]
    assert len(places(sheet, np.hstack([np.asarray(half) for half in halves]))) == 1


def test_small_photographs_are_enlarged_by_a_whole_factor() -> None:
    image = noise(1, 100, 70)
    sheet = contact_sheet(Records(target=[single(image)]))
    assert len(places(sheet, image.repeat(2, axis=0).repeat(2, axis=1))) == 1
    # At 1:1 it is shown once, since it has neither corner nor centre.
    assert len(places(sheet, image)) == 1


def test_crops_show_the_same_pixels_of_both_halves() -> None:
    image, truth = noise(1), flat((90, 90, 90), 480, 320)
    # The ground truth's only detail is where the input has least: its noise must not choose.
    truth[:60, 440:] = noise(2, 40, 60)
    image[:60, 440:] //= 8
    sheet = contact_sheet(Records(source=[paired(image, truth)]))
    corner = np.hstack([image[:240, 240:], truth[:240, 240:]])
    centre = np.hstack([image[40:280, 120:360], truth[40:280, 120:360]])
    ((corner_left, corner_top),) = places(sheet, corner)
    ((centre_left, centre_top),) = places(sheet, centre)
    assert centre_top == corner_top
    assert centre_left > corner_left + 480


def test_the_corner_matters_most_where_one_crop_fits() -> None:
    image = noise(1)
    # Strong contrast, but nothing that shows how sharp the photograph is.
    image[:, :240] = np.linspace(0, 255, 240, dtype=np.uint8)[:, None]
    image[160:, 240:] = 60
    # A second one would be drawn into the target's section, which has none of its own.
    records = Records(source=[single(image)], target=[QdmrError("gone")])
    sheet = contact_sheet(records, columns=1)
    assert len(places(sheet, image[:240, 240:])) == 1
    assert places(sheet, image[40:280, 120:360]) == []


def test_crops_come_from_the_first_and_the_last_readable_record() -> None:
    images = [noise(seed) for seed in range(6)]
    broken = QdmrError("no pixels")
    sheet = contact_sheet(Records(target=[broken, *map(single, images), broken]))
    centres = [bool(places(sheet, image[40:280, 120:360])) for image in images]
    assert centres == [True, False, False, False, False, True]


def test_a_record_that_cannot_be_read_is_an_empty_tile(texts: list[Text]) -> None:
    good = [paired(flat(RED), flat(GREEN)), paired(flat(BLUE), flat(YELLOW))]
    error = QdmrError("/data/source-00000.parquet: has 7 bytes instead of 9; pack it again")
    whole = contact_sheet(Records(source=[good[0], paired(flat(PINK), flat(CYAN)), good[1]]))
    texts.clear()
    sheet = contact_sheet(Records(source=[good[0], error, good[1]]))
    for colour in (RED, GREEN, BLUE, YELLOW):
        assert boxes(sheet, colour)[0] == boxes(whole, colour)[0]
    pink, cyan = boxes(whole, PINK)[0], boxes(whole, CYAN)[0]
    tile = sheet[pink.top : pink.bottom, pink.left : cyan.right]
    assert tile.max(axis=2).mean() < 60, "an empty tile is dark"
    lines = [text for text in texts if pink.left <= text.left < cyan.left + 240]
    joined = " ".join(text.text for text in lines)
    assert "/data/source-00000.parquet: has 7 bytes instead of 9; pack it again" in joined
    assert "not readable #1" in joined
    assert texts[0].text == "source: 3 pairs"


def test_a_long_reason_is_shortened_to_its_tile(texts: list[Text]) -> None:
    error = QdmrError("s3://bucket/" + "folder/" * 300 + "x.parquet: is missing, pack again")
    sheet = contact_sheet(Records(target=[error, single(flat(RED))]))
    red = boxes(sheet, RED)[0]
    written = [text.text for text in texts]
    reason = texts[written.index("all shown") + 1 : written.index("not readable")]
    assert 2 <= len(reason) <= 9
    joined = "".join(text.text for text in reason)
    assert joined.startswith("s3://bucket/folder/")
    assert "..." in joined
    assert joined.replace(" ", "").endswith("missing,packagain")
    assert all(text.right <= red.left for text in reason)


def test_a_set_that_cannot_be_read_at_all_is_still_on_the_page(texts: list[Text]) -> None:
    reason = "s3://bucket/source-00000.parquet: the store answers that access is denied"
    sheet = contact_sheet(Records(source=[QdmrError(reason)] * 2, test=[single(flat(RED))]))
    assert boxes(sheet, RED)[0].size == (240, 160)
    written = [text.text for text in texts]
    assert written[0] == "source: 2 records"
    tiles = "".join(written[2 : written.index("test: 1 photograph")])
    expected = f"{reason} not readable #0 {reason} not readable #1"
    assert tiles.replace(" ", "") == expected.replace(" ", "")


def test_pairs_are_recognised_where_the_first_record_is_broken(texts: list[Text]) -> None:
    records = Records(source=[QdmrError("gone")] + [paired(flat(RED), flat(GREEN))] * 3)
    sheet = contact_sheet(records)
    assert boxes(sheet, RED)[0].right == boxes(sheet, GREEN)[0].left
    assert texts[0].text == "source: 4 pairs"


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        contact_sheet(Records(target=[single(flat(RED)), ZeroDivisionError()]))


def test_a_source_without_ground_truth_is_drawn_as_photographs(texts: list[Text]) -> None:
    sheet = contact_sheet(Records(source=[single(flat(RED))] * 4, test=[single(flat(BLUE))]))
    row = boxes(sheet, RED)[:4]
    assert len({box.top for box in row}) == 1
    assert len({box.left for box in row}) == 4
    assert texts[0].text == "source: 4 photographs"
    assert not any("ground truth" in text.text for text in texts)


def test_one_photograph_is_a_whole_page(texts: list[Text]) -> None:
    sheet = contact_sheet(Records(test=[single(flat(RED, 240, 160))]))
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3
    # The thumbnail, and the photograph at 1:1.
    assert [box.size for box in boxes(sheet, RED)] == [(240, 160), (240, 160)]
    assert [text.text for text in texts[:4]] == [
        "test: 1 photograph",
        "all shown",
        "photo",
        "#0   240 x 160",
    ]


def test_one_column_still_has_room_for_a_pair() -> None:
    sheet = contact_sheet(
        Records(source=[paired(flat(RED), flat(GREEN))], target=[single(flat(BLUE))]), columns=1
    )
    assert boxes(sheet, RED)[0].right == boxes(sheet, GREEN)[0].left
    assert boxes(sheet, GREEN)[0].right < boxes(sheet, BLUE)[0].left


def test_long_names_are_shortened_in_the_middle_to_their_column(texts: list[Text]) -> None:
    name = "first" + "_and_much_more" * 20 + "_0042"
    sheet = contact_sheet(Records(target=[single(flat(RED), name), single(flat(GREEN), "short")]))
    shown = texts[2]
    assert shown.text.startswith("first_and")
    assert shown.text.endswith("more_0042")
    assert shown.text.count("...") == 1
    assert shown.left == boxes(sheet, RED)[0].left
    assert 200 < shown.right - shown.left <= 240
    assert texts[4].text == "short"


def test_letters_that_the_font_lacks_are_replaced(texts: list[Text]) -> None:
    contact_sheet(Records(target=[single(flat(RED), "Fjällräven_镜头\n1")]))
    assert texts[2].text == "Fjallraven_???1"


def test_one_record_is_in_memory_at_a_time() -> None:
    class Watched(Records):
        def __init__(self, **sets: Sequence[Any]) -> None:
            super().__init__(**sets)
            self.handed_out: list[weakref.ref[np.ndarray]] = []

        def held(self) -> int:
            return sum(array() is not None for array in self.handed_out)

        def read(self, name: str, index: int) -> SimpleNamespace:
            assert not self.held(), "an earlier photograph is still in memory"
            record = paired(noise(index), noise(index + 50))
            self.handed_out += [weakref.ref(record.image), weakref.ref(record.ground_truth)]
            return record

    watched = Watched(source=[None] * 9, test=[None] * 2)
    contact_sheet(watched)
    assert len(watched.handed_out) >= 2 * 11
    assert not watched.held()


def test_the_page_is_the_same_every_time() -> None:
    records = Records(source=[paired(noise(i), noise(i + 20)) for i in range(20)])
    np.testing.assert_array_equal(contact_sheet(records), contact_sheet(records))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": 0}, "columns is 0; it must be at least 1"),
        ({"rows": 0}, "rows is 0; it must be at least 1"),
        ({"thumbnail": 10}, "thumbnail is 10; it must be at least 64"),
    ],
)
def test_settings_that_leave_no_room(settings: dict[str, int], message: str) -> None:
    with pytest.raises(QdmrError, match=message):
        contact_sheet(Records(target=[single(flat(RED))]), **settings)


def test_a_dataset_without_photographs() -> None:
    with pytest.raises(QdmrError, match="the dataset has no photographs"):
        contact_sheet(Records(source=[]))


def test_a_packed_dataset(tmp_path: Path, texts: list[Text]) -> None:
    # Small enough that thumbnails are the photographs themselves.
    truths = [noise(seed, 200, 120) for seed in range(5)]
    images = [truth // 2 + 40 for truth in truths]
    photographs = {
        "Syn/L/train": images[:2],
        "Syn/gt": truths[:2],
        "Real-Sim/L/train": images[2:4],
        "Real-Sim/L/val": images[4:],
        "Real-Sim/L/val_gt": truths[4:],
    }
    for folder, each in photographs.items():
        (tmp_path / "Realab" / folder).mkdir(parents=True)
        for index, image in enumerate(each):
            write_png(tmp_path / "Realab" / folder / f"image{index}.png", image)
    pack(tmp_path / "Realab", str(tmp_path / "packed"), settings=PackSettings())
    sheet = contact_sheet(RecordReader(str(tmp_path / "packed")))
    pairs = [
        places(sheet, np.hstack([image, truth]))
        for image, truth in zip(images, truths, strict=True)
    ]
    # The first of a set is shown a second time, at 1:1.
    assert [len(found) for found in pairs] == [2, 1, 0, 0, 2]
    target = [places(sheet, image)[0] for image in images[2:4]]
    assert len({top for _, top in [*target, pairs[0][0], pairs[1][0]]}) == 1
    assert pairs[4][0][1] > pairs[0][1][1]
    assert [text.text for text in texts if ":" in text.text and "1:1" not in text.text] == [
        "source: 2 pairs",
        "target: 2 photographs",
        "test: 1 pair",
    ]


def test_histogram_has_the_most_frequent_size_first() -> None:
    sizes = [(1280, 853, 69), (1280, 1920, 2300), (4000, 6000, 1150)]
    assert size_histogram(sizes, width=12) == [
        "1920 x 1280  2300 ████████████",
        "6000 x 4000  1150 ██████",
        " 853 x 1280    69 █",
    ]


def test_histogram_folds_what_is_left() -> None:
    sizes = [(480, 640, 40), (10, 20, 20), (1, 2, 5), (3, 4, 4), (5, 6, 3)]
    assert size_histogram(sizes, width=8, most=2) == [
        "640 x 480          40 ████████",
        " 20 x 10           20 ████",
        "and 3 other sizes  12",
    ]
    assert size_histogram(sizes, width=8, most=4)[-1] == "and 1 other size   3"


def test_histogram_in_ascii() -> None:
    assert size_histogram([(2, 3, 4), (5, 6, 1)], width=8, ascii_only=True) == [
        "3 x 2  4 ########",
        "6 x 5  1 ##",
    ]


def test_histogram_adds_up_sizes_and_orders_ties_by_area() -> None:
    # The same size in two sets, one that no photograph has, and a landscape with its portrait.
    sizes = [(2, 3, 1), (9, 9, 4), (2, 3, 3), (7, 7, 0), (3, 2, 4)]
    assert size_histogram(sizes, width=2) == ["9 x 9  4 ██", "2 x 3  4 ██", "3 x 2  4 ██"]
    assert size_histogram([]) == []
