"""A set as WebDataset shards, and shards as a set: ours, those that others write, those of a web server."""

from __future__ import annotations

import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trainkit import write_squares

from tsss_edge.data.shards import import_shards, shards_of, write_shards
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError

pytest.importorskip("webdataset")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_squares(tmp_path_factory.mktemp("set") / "data", train=5, val=3, size=32)
    (root / "SegmentationClass/im001.png").unlink()  # a picture with an image-level label alone
    return root


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def same_sets(a: Path, b: Path) -> None:
    one, two = VocDataset.open(a), VocDataset.open(b)
    assert one.classes == two.classes and one.splits == two.splits
    for split in one.splits:
        assert one.split_hash(split) == two.split_hash(split)
        assert [one.image_labels(i) for i in one.ids(split)] == [two.image_labels(i) for i in two.ids(split)]


def test_there_and_back(data: Path, tmp_path: Path) -> None:
    report = write_shards(data, tmp_path / "shards", each=2)
    assert report.shards == {"train": 3, "val": 2} and report.pictures == {"train": 5, "val": 3}
    first = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    found = import_shards(str(tmp_path / "shards"), tmp_path / "back")
    assert (found.masks, found.image_labels, found.splits) == (7, 1, {"train": 5, "val": 3})
    same_sets(data, tmp_path / "back")
    write_shards(data, tmp_path / "shards", each=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()} == first


def test_from_a_web_server(data: Path, tmp_path: Path, server: str) -> None:
    write_shards(data, tmp_path / "shards", each=4)
    import_shards(f"{server}/shards/{{train-00000{{0..1}},val-000000}}.tar", tmp_path / "back")
    same_sets(data, tmp_path / "back")
    with pytest.raises(DataError, match="cannot be read"):
        import_shards(f"{server}/shards/train-000009.tar", tmp_path / "none")


def shard(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    (path.parent / "classes.txt").write_text("background\ncat\ndog\n")
    return path


def png(values: np.ndarray) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(values).save(memory, format="PNG")
    return memory.getvalue()


PICTURE = png(np.zeros((4, 6, 3), np.uint8))


def test_shards_of_others(tmp_path: Path) -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[0] = 2
    path = shard(
        tmp_path / "validation-0.tar", a__jpg=PICTURE, a__seg__png=png(mask), b__png=PICTURE, b__cls=b"1",
        c__png=PICTURE, c__json=b'{"labels": ["dog"]}'
    )  # fmt: skip
    import_shards(str(path), tmp_path / "set")
    dataset = VocDataset.open(tmp_path / "set")
    assert dataset.ids("val") == ("a", "b", "c")
    assert [set(dataset.image_labels(i)) for i in "abc"] == [{2}, {1}, {2}]
    np.testing.assert_array_equal(dataset.mask("a"), mask)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"a__txt": b"x"}, "no picture"),
        ({"a__jpg": PICTURE, "a__mask__png": png(np.full((4, 6), 7, np.uint8))}, "ids below 3"),
        ({"a__jpg": PICTURE, "a__mask__png": png(np.zeros((5, 6), np.uint8))}, r"its mask is \(5, 6\)"),
        ({"a__jpg": PICTURE, "a__json": b'{"labels": ["cow"]}'}, "not of these classes"),
        ({"a__jpg": PICTURE, "a__json": b"{"}, "cannot be read"),
        ({"../a__jpg": PICTURE, "../a__cls": b"1"}, "no image id"),
        ({"a__jpg": b"no picture", "a__cls": b"1"}, "a.jpg"),
        ({"a__jpg": PICTURE, "a__json": b'{"split": "../x", "labels": []}'}, "no name of a list"),
    ],
)
def test_bad_samples_are_told_and_no_list_is_written(tmp_path: Path, members: dict[str, bytes], told: str) -> None:
    path = shard(tmp_path / "train-0.tar", **members)
    with pytest.raises(DataError, match=told):
        import_shards(str(path), tmp_path / "set")
    assert not list((tmp_path / "set").rglob("train.txt"))


def test_damaged_shards_and_bad_addresses(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").write_bytes(b"no tar file" * 200)
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    with pytest.raises(DataError, match="cannot be read"):
        import_shards(str(tmp_path), tmp_path / "set")
    for source in ("pipe:touch x", "-", str(tmp_path / "none"), "s3://bucket/a.tar"):
        with pytest.raises(DataError, match=r"expected|no shard"):
            shards_of(source)


def test_names_that_shards_would_cut_and_foreign_folders(tmp_path: Path, data: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/notes").write_text("mine")
    with pytest.raises(DataError, match="holds notes"):
        write_shards(data, tmp_path / "kept")


def _shard(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _encoded(values: np.ndarray, form: str, **more: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, form, **more)
    return stream.getvalue()


def test_names_that_start_again_in_the_next_list_are_told(tmp_path: Path) -> None:
    """One picture may stand in two lists; two pictures of one name may not."""
    grey, dark = (_encoded(np.full((4, 6, 3), v, np.uint8), "JPEG") for v in (128, 9))
    (tmp_path / "s").mkdir()
    (tmp_path / "s/classes.txt").write_text("background\ncat\n")
    for name, picture in (("train", grey), ("val", dark)):
        _shard(tmp_path / f"s/{name}-000000.tar", {"000.jpg": picture, "000.json": b'{"labels": ["cat"]}'})
    with pytest.raises(DataError, match="another picture of this name; make names differ"):
        import_shards(str(tmp_path / "s"), tmp_path / "out")
    _shard(tmp_path / "s/val-000000.tar", {"000.jpg": grey, "000.json": b'{"labels": ["cat"]}'})
    report = import_shards(str(tmp_path / "s"), tmp_path / "both")
    assert (report.splits, report.image_labels) == ({"train": 1, "val": 1}, 1)


def test_a_png_beside_a_picture_is_its_mask_and_may_be_made_on_the_turned_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = _encoded(np.zeros((4, 6, 3), np.uint8), "WEBP", exif=exif)
    _shard(tmp_path / "s/train-000000.tar", {"a.webp": picture, "a.png": _encoded(np.ones((6, 4), np.uint8), "PNG")})
    (tmp_path / "s/classes.txt").write_text("background\ncat\n")
    assert import_shards(str(tmp_path / "s"), tmp_path / "out").masks == 1
    assert VocDataset.open(tmp_path / "out").mask("a").shape == (6, 4)


def test_shards_of_a_store_want_names() -> None:
    with pytest.raises(DataError, match="give the class names with --names"):
        import_shards("gs://bucket/train-000000.tar", Path("unused"))


def test_shards_are_replaced_as_a_whole(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write_shards(data, out, each=2)
    write_shards(data, out, each=100)
    assert sorted(p.name for p in out.iterdir()) == ["classes.txt", "train-000000.tar", "val-000000.tar"]
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    (broken / "SegmentationClass/im003.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="im003"):
        write_shards(broken, out, each=1)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before and len(list(tmp_path.iterdir())) == 2
