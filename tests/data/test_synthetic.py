"""The embedded set: the same bytes everywhere and in any order, exact masks, a folder that VOC readers take."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from datakit import others_than_rare

from tsss_edge.data import appearance, patterns
from tsss_edge.data.check import check_dataset
from tsss_edge.data.synthetic import CLASSES, Scenes, write_synthetic
from tsss_edge.data.voc import VOC_NAMES, VocDataset
from tsss_edge.errors import DataError

# SHA-256 over picture and mask of scenes 0-2 of seed 0 at 128x128. It changes when the drawing changes, and then every
# published number of the embedded set has to be measured again.
GOLDEN = "f92a4fcd9964987b0a6474fb7d766321f6e9b1088349fc8b019b9b920cdb8f4b"


def fingerprint(scenes: Scenes, count: int = 3) -> str:
    digest = hashlib.sha256()
    for index in range(count):
        for array in scenes.scene(index):
            digest.update(array.tobytes())
    return digest.hexdigest()


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_golden() -> None:
    assert fingerprint(Scenes(0, (128, 128))) == GOLDEN


def test_the_same_without_vector_instructions() -> None:
    """Plain code in OpenCV and the smallest dispatch in NumPy draw the same bytes."""
    code = (
        "import cv2; cv2.setUseOptimized(False)\n"
        "from test_synthetic import fingerprint, Scenes\n"
        "print(fingerprint(Scenes(0, (128, 128))))"
    )
    config = np.show_config(mode="dicts")
    assert isinstance(config, dict)
    features = " ".join(config["SIMD Extensions"].get("found", []))  # NumPy refuses to turn off what a machine has not
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": features, "PYTHONPATH": paths}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == GOLDEN


def test_order_and_history_do_not_matter() -> None:
    forward, backward = Scenes(7, (64, 96)), Scenes(7, (64, 96))
    first = [forward.scene(i) for i in range(4)]
    for index in (3, 1, 0, 2):
        for a, b in zip(first[index], backward.scene(index), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(Scenes(8, (64, 96)).scene(0)[0], first[0][0])


def test_scenes_are_what_they_say() -> None:
    scenes, seen, objects = Scenes(0, (96, 128)), set(), []
    for index in range(60):
        image, mask = scenes.scene(index)
        assert image.shape == (96, 128, 3)
        assert mask.shape == (96, 128)
        assert image.dtype == mask.dtype == np.uint8
        ids = set(np.unique(mask).tolist()) - {0}
        assert ids, f"scene {index} is empty"
        objects.append(len(ids))
        seen |= ids
    assert seen == set(range(1, 21))
    assert 1 <= min(objects) <= max(objects) <= 4


def test_edges_of_the_mask_lie_on_edges_of_the_picture() -> None:
    """The picture changes more across a mask's edge than elsewhere; with the mask turned round it does not."""

    def contrast(image: np.ndarray, mask: np.ndarray) -> float:
        step = np.abs(np.diff(image.astype(int), axis=1)).sum(2)
        edge = mask[:, 1:] != mask[:, :-1]
        return float(step[edge].mean() / step[~edge].mean())

    pairs = [Scenes(0, (128, 128)).scene(i) for i in range(20)]
    assert np.mean([contrast(i, m) for i, m in pairs]) > 2
    assert np.mean([contrast(i, m[::-1, ::-1]) for i, m in pairs]) < 1.3


def test_categories_look_alike_under_another_seed() -> None:
    """`synthetic://?seed=5` must show what a network trained on seed 0 knows: the mean colour by category agrees."""

    def mean_colors(seed: int) -> np.ndarray:
        sums, counts = np.zeros((21, 3)), np.zeros(21)
        for image, mask in (Scenes(seed, (64, 64)).scene(i) for i in range(150)):
            counts += np.bincount(mask.ravel(), minlength=21)
            for channel in range(3):
                sums[:, channel] += np.bincount(mask.ravel(), image[..., channel].ravel(), minlength=21)
        return (sums / counts[:, None])[1:]

    one, two = mean_colors(0), mean_colors(5)
    distance = np.linalg.norm(one[:, None] - two[None], axis=-1)
    assert np.median(distance.diagonal()) < 0.6 * np.median(distance)


def test_frames_drift() -> None:
    scenes = Scenes(0, (96, 128))
    still = scenes.scene(2)
    at_rest = scenes.frame(2, 0.0)
    np.testing.assert_array_equal(still[0], at_rest[0])
    np.testing.assert_array_equal(still[1], at_rest[1])
    a, b = scenes.frame(2, 1.0), scenes.frame(2, 1.0 + 1 / 30)
    assert not np.array_equal(still[1], a[1])
    changed = (a[1] != b[1]).mean()
    assert changed < 0.1  # smooth: a thirtieth of a second moves edges by a pixel or so
    np.testing.assert_array_equal(a[0], Scenes(0, (96, 128)).frame(2, 1.0)[0])


def test_objects_come_back() -> None:
    """The middle of an object bounces: nothing has left the picture after a long time."""
    scenes = Scenes(1, (64, 64))
    assert all(scenes.frame(0, t)[1].any() for t in np.linspace(0, 300, 40))


def test_the_set_on_disk(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "set", train=6, val=3, size=64)
    dataset = VocDataset.open(tmp_path / "set")
    assert dataset.splits == ("train", "val")
    assert dataset.classes == CLASSES
    assert not set(CLASSES.names[1:]) & set(VOC_NAMES)
    assert len(dataset.ids("train")) == 6
    for image_id in dataset.ids("val"):
        mask = dataset.mask(image_id)
        assert dataset.image_labels(image_id) == frozenset(np.unique(mask).tolist()) - {0}
        assert dataset.image(image_id).shape == (64, 64, 3)
    assert not others_than_rare(check_dataset(tmp_path / "set"))


def test_bytes_do_not_depend_on_the_number_of_images(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "few", train=2, val=2, size=64)
    write_synthetic(tmp_path / "many", train=4, val=3, size=64)
    few, many = tree(tmp_path / "few"), tree(tmp_path / "many")
    pictures = {name for name in few if name.endswith((".jpg", ".png"))}
    assert len(pictures) == 8
    assert all(few[name] == many[name] for name in pictures)


def test_pictures_on_disk_are_the_scenes_but_for_jpeg(tmp_path: Path) -> None:
    from tsss_edge.data.synthetic import VAL_FROM

    write_synthetic(tmp_path / "set", train=1, val=1, size=128)
    dataset = VocDataset.open(tmp_path / "set")
    image, mask = Scenes(0, (128, 128)).scene(VAL_FROM)
    np.testing.assert_array_equal(dataset.mask("val_00000"), mask)
    assert np.abs(dataset.image("val_00000").astype(int) - image).mean() < 8


def test_written_twice_is_the_same_and_another_set_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_synthetic(root, train=2, val=1, size=64)
    before = tree(root)
    (root / "ImageSets/Segmentation/val.txt").unlink()  # as if it had been cut short
    write_synthetic(root, train=2, val=1, size=64)
    assert tree(root) == before
    with pytest.raises(DataError, match="holds another set"):
        write_synthetic(root, train=2, val=1, size=64, seed=1)
    assert tree(root) == before


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        write_synthetic(tmp_path, train=1, val=1, size=64)
    assert tree(tmp_path) == {"thesis.txt": b"precious"}
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(DataError, match="not a readable recipe"):
        write_synthetic(tmp_path, train=1, val=1, size=64)
    with pytest.raises(DataError, match="is a file"):
        write_synthetic(tmp_path / "thesis.txt", train=1, val=1, size=64)


def test_lists_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies half way leaves no list, so nothing takes the half for the whole."""
    drawn = Scenes.scene

    def dies(self: Scenes, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index % 4 == 3:
            raise KeyboardInterrupt
        return drawn(self, index)

    monkeypatch.setattr(Scenes, "scene", dies)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "set", train=6, val=1, size=64)
    assert not list((tmp_path / "set/ImageSets/Segmentation").iterdir())
    assert not [name for name in tree(tmp_path / "set") if Path(name).name.startswith(".")]


def test_too_small() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        Scenes(0, (16, 64))


@pytest.mark.parametrize("name", [*patterns.TEXTURES, *patterns.MORE_TEXTURES])
def test_textures_fill_their_range(name: str) -> None:
    texture = (patterns.TEXTURES | patterns.MORE_TEXTURES)[name]
    u, v = patterns.coordinates((96, 96), (48, 48), angle=0.4, period=(14.0, 14.0))
    weight = texture(u, v)
    assert weight.shape == (96, 96)
    assert weight.dtype == np.int32
    assert 0 <= weight.min() < 60
    assert 195 < weight.max() <= 255
    assert 0.1 < (weight > 127).mean() < 0.9


def test_stripes_by_hand() -> None:
    """Period 8 along x, bright where the cell begins, dark in its middle."""
    u, v = patterns.coordinates((2, 16), (0, 0), angle=0.0, period=(8.0, 8.0))
    row = patterns.stripes(u, v)[0]
    assert row[[0, 1, 7]].tolist() == [255] * 3
    assert row[[3, 4, 5]].tolist() == [0] * 3
    np.testing.assert_array_equal(row[:8], row[8:])


@pytest.mark.parametrize("name", [*patterns.OUTLINES, *patterns.MORE_OUTLINES])
def test_silhouettes_are_bodies(name: str) -> None:
    """Each draws another shape, in one piece, of sensible area, inside the radius."""
    family, areas = (patterns.OUTLINES | patterns.MORE_OUTLINES)[name], set()
    for seed in range(12):
        points = patterns.place(
            family(np.random.default_rng(seed)), radius=40, angle=0.3, stretch=1.0, origin_xy=(64, 64)
        )
        canvas = np.zeros((128, 128), np.uint8)
        cv2.fillPoly(canvas, points, 1, shift=4)
        assert cv2.connectedComponents(canvas)[0] == 2
        assert 0.1 < canvas.sum() / 80**2 < 0.95
        assert not (canvas[0].any() or canvas[-1].any() or canvas[:, 0].any() or canvas[:, -1].any())
        areas.add(int(canvas.sum()))
    assert len(areas) > 5


def test_light_comes_from_its_side() -> None:
    """Light from the right: the right rim of a disc is brighter than the left one."""
    solid = np.zeros((61, 61), np.uint8)
    cv2.circle(solid, (30, 30), 24, 255, -1)
    height = appearance.relief(solid, np.random.default_rng(0))
    level = appearance.lighting(height, appearance.Light(angle=0.0, strength=1.0), np.random.default_rng(0))
    assert level[30, 50] > level[30, 10] + 40
    assert abs(int(level[10, 30]) - int(level[50, 30])) < 12


def test_blend_is_exact_at_its_ends() -> None:
    under, over = np.full((2, 2, 3), 10, np.uint8), np.full((2, 2, 3), 250, np.uint8)
    appearance.blend(under, over, np.array([[0, 255], [128, 1]], np.uint8))
    assert under[..., 0].tolist() == [[10, 250], [130, 11]]  # 10 + 240 * 128 / 255 = 130.5, 10 + 240 / 255 = 10.9


def test_every_tone_belongs_to_five_categories() -> None:
    pairs = [appearance.tones_of(number) for number in range(20)]
    assert len({frozenset(pair) for pair in pairs}) == 20
    counts = [sum(tone in pair for pair in pairs) for tone in appearance.TONES]
    assert counts == [5] * 8
