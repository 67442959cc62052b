"""What is drawn: colours that can be seen, a name at the largest region, no name on another, legends, contact sheets."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFont

from tsss_edge.artifacts import Classes
from tsss_edge.drawing import Drawer, blended, lettering, with_legend
from tsss_edge.drawing.places import Places
from tsss_edge.drawing.sheet import tile, write_sheet

CLASSES = Classes(names=("background", "cat", "dog"))
STREET = Classes(names=("Sky", "Road", "Tree"), background=False)


def lab(colour: tuple[int, int, int]) -> np.ndarray:
    return cv2.cvtColor(np.float32([[colour]]) / 255, cv2.COLOR_RGB2LAB)[0, 0]


def test_colours_stand_out_from_plants_and_from_the_dark() -> None:
    palette = Classes(names=tuple(f"c{i}" for i in range(22)), background=False).palette
    for colour in palette:
        assert min(np.linalg.norm(lab(colour) - lab(plant)) for plant in ((60, 110, 50), (100, 150, 70))) > 50
        assert lab(colour)[0] > 50  # of 100: light
    assert min(np.linalg.norm(lab(a) - lab(b)) for a, b in combinations(palette, 2)) > 18


def test_every_class_of_a_large_set_has_a_colour_of_its_own() -> None:
    palette = Classes(names=tuple(f"c{i}" for i in range(255))).palette
    assert palette[0] == (0, 0, 0) and len(set(palette)) == 255


def test_a_name_stands_at_the_largest_region_and_stays_while_it_can() -> None:
    labels = np.zeros((120, 200), np.uint8)
    labels[10:20, 10:20] = 1
    labels[40:110, 60:180] = 1
    places = Places((1, 2))
    y, x = places.find(labels)[1]
    assert 70 <= y <= 80 and 115 <= x <= 125 and list(places.find(labels)) == [1]
    assert places.find(np.roll(labels, 5, axis=1))[1] == (y, x)  # still a good place
    far = np.roll(labels, -55, axis=1)
    assert far[places.find(far)[1]] == 1 and places.find(far)[1][1] < x
    labels[:] = 0
    labels[3:5, 3:5] = 2
    assert places.find(labels) == {}  # too small for a name


def test_names_do_not_cover_each_other() -> None:
    labels = np.full((240, 320), 1, np.uint8)
    labels[100:140, 140:180] = 2
    labels[60:180, 120:200][labels[60:180, 120:200] == 1] = 0
    frame = np.full((240, 320, 3), 90, np.uint8)
    Drawer(CLASSES, (240, 320), "names")(frame, labels)
    cat, dog = (np.argwhere((frame == CLASSES.palette[k][::-1]).all(axis=-1)) for k in (1, 2))
    assert len(cat) > 100 and len(dog) > 100


def test_levels_add_up() -> None:
    image, labels = np.full((240, 320, 3), 90, np.uint8), np.zeros((240, 320), np.uint8)
    labels[60:200, 60:260] = 1
    seen = [blended(image, labels, CLASSES, draw) for draw in ("plain", "outlines", "names", "legend")]
    assert (image == 90).all() and tuple(seen[1][60, 100]) == CLASSES.palette[1] != tuple(seen[0][60, 100])
    changed = [np.count_nonzero((a != b).any(axis=-1)) for a, b in pairwise(seen)]
    assert changed[0] == 2 * (200 + 138) and changed[1] > 200 and (seen[3][2] != seen[2][2]).any()


def test_a_picture_without_objects_is_left_alone() -> None:
    image, labels = np.full((60, 80, 3), 90, np.uint8), np.zeros((60, 80), np.uint8)
    assert (blended(image, labels, CLASSES, "legend") == 90).all()
    assert with_legend(image, labels, CLASSES).shape == image.shape


def test_legend_by_area_with_shares() -> None:
    labels = np.zeros((300, 400), np.uint8)
    labels[:100], labels[250:] = 1, 2
    picture = with_legend(np.full((300, 400, 3), 90, np.uint8), labels, STREET)
    strip = picture[300:]
    columns = [np.argwhere((strip == colour).all(axis=-1))[0][1] for colour in STREET.palette]
    assert columns == sorted(columns)  # Sky half, Road a third, Tree a sixth


def test_contact_sheet(tmp_path: Path) -> None:
    """Pictures of any shape, truth beside some, unsure pixels."""
    rng = np.random.default_rng(0)
    tiles = []
    for number, hw in enumerate([(90, 120), (400, 300), (64, 64)]):
        labels = np.full(hw, 2, np.uint8)
        labels[: hw[0] // 2], labels[:5] = 1, 255
        image = rng.integers(0, 256, (*hw, 3), dtype=np.uint8)
        tiles.append(tile(f"picture {number}", image, labels, labels if number != 1 else None))
    write_sheet(tmp_path / "sheet.png", tiles, CLASSES)
    write_sheet(tmp_path / "sheet.jpg", tiles[:1], CLASSES)
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "sheet.jpg") as small:
        assert sheet.format == "PNG" and small.format == "JPEG" and small.size < sheet.size
        pixels = np.asarray(sheet).reshape(-1, 3)
    for colour in CLASSES.palette[1:]:
        assert (pixels == colour).all(axis=-1).any()


def test_names_in_other_scripts_get_a_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own font draws every sign that it lacks as the same box."""
    asked: list[str] = []
    own = ImageFont.load_default(20)

    def truetype(name: str, size: float) -> object:
        asked.append(name)
        if name != "DejaVuSans.ttf":
            raise OSError(name)
        return own

    monkeypatch.setattr(lettering.ImageFont, "truetype", truetype)
    lettering._font.cache_clear()
    lettering.name_tag("дорога", (200, 200, 200), 21)
    assert asked[-1] == "DejaVuSans.ttf"
