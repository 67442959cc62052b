"""Kinds of pictures and masks: each comes out right, or is refused in one line; none silently wrong."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datakit import write_set
from PIL import ExifTags, Image

from tsss_edge.data import pictures
from tsss_edge.data.check import check_dataset
from tsss_edge.data.pictures import IMAGE_SUFFIXES, OTHER_SUFFIXES, is_picture, read_image, read_mask, read_size
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import DataError

GREY16 = (np.arange(12, dtype=np.uint32).reshape(3, 4) * 5957).astype(np.uint16)  # 0 to 65527
RGB = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
SMOOTH = np.tile(np.array([200, 120, 40], np.uint8), (16, 24, 1))  # survives lossy formats
Make = Callable[[Path], np.ndarray]  # writes the picture, returns what must come out


def exif(turn: int) -> bytes:
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = turn
    return found.tobytes()


def grey16(path: Path) -> np.ndarray:
    Image.fromarray(GREY16).save(path)
    return (GREY16 >> 8).astype(np.uint8)[..., None].repeat(3, 2)


def turned(turn: int, undo: Callable[[np.ndarray], np.ndarray]) -> Make:
    def make(path: Path) -> np.ndarray:
        Image.fromarray(RGB).save(path, exif=exif(turn))
        return undo(RGB)

    return make


def saved(mode: str, *, smooth: bool = False, **options: object) -> Make:
    def make(path: Path) -> np.ndarray:
        values = SMOOTH if smooth else RGB
        picture = Image.fromarray(values)
        picture.convert(mode).save(path, **options)
        return np.asarray(picture.convert(mode).convert("RGB"))

    return make


def alpha(path: Path) -> np.ndarray:
    rgba = np.dstack([RGB, np.array([[0, 255, 128, 255]] * 3, np.uint8)])
    Image.fromarray(rgba).save(path)
    share = rgba[..., 3:].astype(float) / 255
    return np.rint(RGB * share + 255 * (1 - share)).astype(np.uint8)


def palette_with_a_clear_colour(path: Path) -> np.ndarray:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(path, transparency=0)
    return np.array([[[255, 255, 255], [40, 50, 60]]], np.uint8)


def cmyk(path: Path) -> np.ndarray:
    """Ink: cyan off, magenta off, yellow full, black off -> yellow."""
    values = np.zeros((16, 16, 4), np.uint8)
    values[..., 2] = 255
    Image.fromarray(values, mode="CMYK").save(path, quality=95)
    return np.tile(np.array([255, 255, 0], np.uint8), (16, 16, 1))


def mpo(path: Path) -> np.ndarray:
    first, second = Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)
    first.save(path, format="MPO", save_all=True, append_images=[second], quality=95)
    return SMOOTH


def one_bit(path: Path) -> np.ndarray:
    bits = np.array([[True, False, True]])
    Image.fromarray(bits).save(path)
    return np.where(bits, 255, 0).astype(np.uint8)[..., None].repeat(3, 2)


RIGHT: dict[str, tuple[str, Make, int]] = {  # file name, maker, largest difference that its compression may make
    "8-bit RGB PNG": ("a.png", saved("RGB"), 0),
    "8-bit grey PNG": ("a.png", saved("L"), 0),
    "16-bit grey PNG": ("a.png", grey16, 0),
    "16-bit grey TIFF": ("a.tif", grey16, 0),
    "1-bit PNG": ("a.png", one_bit, 0),
    "palette PNG": ("a.png", saved("P"), 0),
    "palette PNG with a clear colour": ("a.png", palette_with_a_clear_colour, 0),
    "RGBA PNG, on white": ("a.png", alpha, 1),
    "baseline JPEG": ("a.jpg", saved("RGB", smooth=True, quality=95), 3),
    "progressive JPEG": ("a.jpeg", saved("RGB", smooth=True, quality=95, progressive=True), 3),
    "grey JPEG": ("a.jpg", saved("L", smooth=True, quality=95), 3),
    "CMYK JPEG": ("a.jpg", cmyk, 3),
    "upper-case ending": ("A.JPG", saved("RGB", smooth=True, quality=95), 3),
    "MPO of a phone, first view": ("a.mpo", mpo, 3),
    "EXIF turned by 90 degrees": ("a.png", turned(6, lambda x: np.rot90(x, -1)), 0),
    "EXIF turned by 180 degrees": ("a.png", turned(3, lambda x: x[::-1, ::-1]), 0),
    "EXIF mirrored": ("a.png", turned(2, lambda x: x[:, ::-1]), 0),
    "lossless WebP": ("a.webp", saved("RGB", lossless=True), 0),
    "AVIF": ("a.avif", saved("RGB", smooth=True, quality=95), 4),
    "BMP": ("a.bmp", saved("RGB"), 0),
    "TIFF, LZW": ("a.tiff", saved("RGB", compression="tiff_lzw"), 0),
    "JPEG 2000": ("a.jp2", saved("RGB", smooth=True), 3),
    "PPM": ("a.ppm", saved("RGB"), 0),
    "TGA": ("a.tga", saved("RGB"), 0),
    "still GIF": ("a.gif", saved("P"), 0),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_comes_out_right(tmp_path: Path, kind: str) -> None:
    name, make, tolerance = RIGHT[kind]
    expected = make(tmp_path / name)
    found = read_image(tmp_path / name)
    assert (found.shape, found.dtype) == (expected.shape, np.uint8)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= tolerance
    assert is_picture(tmp_path / name)


def moving(path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (0, 90, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cut(path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(stream, format="JPEG")
    path.write_bytes(stream.getvalue()[:700])


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "moving GIF": ("a.gif", moving, "holds 3 frames"),
    "TIFF of several pages": ("a.tif", moving, "holds 3 frames"),
    "floating point TIFF": ("a.tif", lambda p: Image.fromarray(np.ones((2, 2), np.float32)).save(p), "floating point"),
    "32-bit TIFF": ("a.tif", lambda p: Image.fromarray(np.ones((2, 2), np.int32)).save(p), "32-bit"),
    "cut short": ("a.jpg", cut, "not a readable picture"),
    "empty file": ("a.jpg", lambda p: p.write_bytes(b""), "not a readable picture"),
    "text": ("a.png", lambda p: p.write_text("hello"), "not a readable picture"),
    "missing": ("a.png", lambda p: None, "no such picture"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    name, make, message = REFUSED[kind]
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(DataError, match="too large"):
        read_image(tmp_path / "a.png")


def test_every_ending_of_pillow_is_decided() -> None:
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert known <= {*IMAGE_SUFFIXES, *OTHER_SUFFIXES}
    assert not {*IMAGE_SUFFIXES} & {*OTHER_SUFFIXES}


def test_transparency_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures._said.clear()
    alpha(tmp_path / "a.png")
    Image.new("RGBA", (2, 2), (1, 2, 3, 255)).save(tmp_path / "opaque.png")
    with caplog.at_level(logging.WARNING):
        read_image(tmp_path / "opaque.png")
        assert not caplog.records
        read_image(tmp_path / "a.png")
        read_image(tmp_path / "a.png")
    assert len(caplog.records) == 1


# ---------------------------------------------------------------------------------------------------------------------
# In a set


def turn_picture(root: Path, turn: int) -> Path:
    path = root / "JPEGImages/a.jpg"
    with Image.open(path) as picture:
        picture.load()
        picture.save(path, quality=92, exif=exif(turn))
    return path


def test_a_turned_picture_follows_its_mask(tiny: Path) -> None:
    """The mask tells by its size whether it was made before or after the turn."""
    path = turn_picture(tiny, 6)
    dataset = VocDataset.open(tiny)
    assert read_size(path) == (8, 16)
    np.testing.assert_array_equal(
        dataset.image("a"), read_image(path, upright=False)
    )  # mask 8x16: made on stored pixels
    write_mask(tiny / "SegmentationClass/a.png", np.zeros((16, 8), np.uint8))
    assert dataset.image("a").shape == (16, 8, 3)
    np.testing.assert_array_equal(dataset.image("a"), read_image(path))
    assert dataset.mask("a").shape == (16, 8)
    (tiny / "SegmentationClass/a.png").unlink()
    assert dataset.image("a").shape == (16, 8, 3)  # no mask: as people see it


def test_check_names_turns_that_nobody_can_tell(tiny: Path) -> None:
    assert not check_dataset(tiny).problems
    turn_picture(tiny, 3)
    (problem,) = check_dataset(tiny).problems
    assert "a.jpg" in problem
    assert "upright" in problem


def test_check_shows_what_masks_hold(tiny: Path) -> None:
    report = check_dataset(tiny)
    assert report.values == {0: 288, 1: 96, 2: 64, 3: 128, 4: 32, 255: 32}
    assert "255: 32" in report.summary()
    write_mask(tiny / "SegmentationClass/a.png", np.full((8, 16), 77, np.uint8))
    report = check_dataset(tiny)
    assert report.values[77] == 128
    assert "name all classes in" in report.problems[0]


def test_check_finds_a_class_without_a_pixel(tiny: Path) -> None:
    (tiny / "classes.txt").write_text("background\ncat\ndog\ncow\nhorse\nunicorn\n")
    (problem,) = check_dataset(tiny).problems
    assert "no pixel of unicorn" in problem
    assert "--classes FILE" in problem


def test_check_finds_black_and_white_masks(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", csv=False)
    for path in (root / "SegmentationClass").iterdir():
        write_mask(path, np.where(read_mask(path) == 1, 255, 0).astype(np.uint8))
    problems = check_dataset(root).problems
    assert any("0 and 255 only" in line and "data import folders" in line for line in problems)


def test_check_names_what_it_does_not_use(tiny: Path) -> None:
    Image.new("RGB", (4, 4)).save(tiny / "JPEGImages/unlisted.webp")
    (tiny / "JPEGImages/Thumbs.db").write_bytes(b"x")
    report = check_dataset(tiny)
    assert not report.problems
    assert any("unlisted.webp" in note for note in report.notes)
    assert any("Thumbs.db" in note for note in report.notes)


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif", ".avif"])
def test_any_format_in_a_set(tiny: Path, suffix: str) -> None:
    Image.fromarray(SMOOTH[:8, :16]).save(tiny / f"JPEGImages/a{suffix}")
    (tiny / "JPEGImages/a.jpg").unlink()
    assert np.abs(VocDataset.open(tiny).image("a").astype(int) - SMOOTH[:8, :16]).max() <= 6
    assert not check_dataset(tiny).problems


MASKS: dict[str, tuple[Image.Image, list[int] | str]] = {
    "palette": (Image.fromarray(np.array([[1, 2, 255]], np.uint8)), [1, 2, 255]),
    "16-bit with small ids": (Image.fromarray(np.array([[1, 2, 255]], np.uint16)), [1, 2, 255]),
    "16-bit with instances": (Image.fromarray(np.array([[26001]], np.uint16)), "ids from 26001 to 26001"),
    "1 bit": (Image.fromarray(np.array([[True, False]])), [1, 0]),
    "colours": (Image.new("RGB", (2, 1)), "data import rgb"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks(tmp_path: Path, kind: str) -> None:
    picture, expected = MASKS[kind]
    picture.save(tmp_path / "m.png")
    if isinstance(expected, list):
        assert read_mask(tmp_path / "m.png")[0].tolist() == expected
    else:
        with pytest.raises(DataError, match=expected):
            read_mask(tmp_path / "m.png")
