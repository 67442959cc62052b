"""Downloads against a server of our own that knows ranges, breaks off, lies and dies; archives with traps in them."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tsss_edge.data import fetch as fetch_module
from tsss_edge.data.fetch import ARCHIVES, Archive, download, fetch, members, read_sbd
from tsss_edge.data.voc import VocDataset, read_mask
from tsss_edge.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves `files`. `break_after` bytes it hangs up, `breaks` times; `ranges` False ignores Range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {"/a.bin": CONTENT}
        self.ranges, self.break_after, self.breaks, self.failures = True, 0, 0, 0
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Range", "all"))
        data = self.server.files.get(self.path)
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        if data is None:
            self.send_error(404)
            return
        start = int(self.headers["Range"].split("=")[1][:-1]) if "Range" in self.headers and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: self.server.break_after]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(
    server: Server, path: Path, *, content: bytes = CONTENT, name: str = "a.bin", size: int | None = None
) -> list[int]:
    """Download, and what `advance` was told."""
    gains: list[int] = []
    sha256 = hashlib.sha256(content).hexdigest()
    size = len(content) if size is None else size
    download(f"{server.url}/{name}", path, sha256=sha256, size=size, advance=gains.append, first_wait_s=0.001)
    return gains


def test_download(server: Server, tmp_path: Path) -> None:
    gains = get(server, tmp_path / "new/a.bin")
    assert (tmp_path / "new/a.bin").read_bytes() == CONTENT
    assert sum(gains) == len(CONTENT)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.bin"]


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    get(server, tmp_path / "a.bin")
    assert server.asked == []
    (tmp_path / "a.bin").write_bytes(b"x" + CONTENT[1:])
    get(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_resume(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:123_456])
    gains = get(server, tmp_path / "a.bin")
    assert server.asked == ["bytes=123456-"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert sum(gains) == len(CONTENT)
    assert not (tmp_path / "a.bin.part").exists()


def test_a_broken_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.breaks, server.break_after = 7, 20_000  # more often than TRIES, but each time something came
    get(server, tmp_path / "a.bin")
    assert server.asked == ["all", *(f"bytes={20_000 * k}-" for k in range(1, 8))]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"?" * 1000)
    gains = get(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert sum(gains) == len(CONTENT)


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.failures = 3
    get(server, tmp_path / "a.bin")
    assert len(server.asked) == 4


def test_giving_up_keeps_what_came(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    server.failures = 99
    with pytest.raises(DataError, match="nothing came in 5 tries"):
        get(server, tmp_path / "a.bin")
    assert len(server.asked) == 5
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:1000]
    assert not (tmp_path / "a.bin").exists()


def test_nobody_there(tmp_path: Path, server: Server) -> None:
    with Server() as gone:
        pass
    with pytest.raises(DataError, match="nothing came in 5 tries"):
        get(gone, tmp_path / "a.bin")


def test_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="answered 404"):
        get(server, tmp_path / "b.bin", name="b.bin")
    assert len(server.asked) == 1


@pytest.mark.parametrize("wrong", [b"z" * len(CONTENT), CONTENT + b"!" * 3_000_000], ids=["other bytes", "too long"])
def test_wrong_content_is_deleted(server: Server, tmp_path: Path, wrong: bytes) -> None:
    server.files["/a.bin"] = wrong
    with pytest.raises(DataError, match="expected 300000 bytes with SHA-256"):
        get(server, tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_a_damaged_part_is_found_out(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"?" * 1000)
    with pytest.raises(DataError, match="deleted, try again"):
        get(server, tmp_path / "a.bin")
    get(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_no_room(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make room"):
        get(server, tmp_path / "a.bin", size=1 << 60)
    assert server.asked == []


def test_only_http(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    with pytest.raises(DataError, match="expected an http or https address"):
        download(f"file://{tmp_path}/secret", tmp_path / "x", sha256="0" * 64, size=1)


# ---------------------------------------------------------------------------------------------------------------------
# Archives


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def picture(mode: str, suffix: str, value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (12, 8), value).save(stream, format="JPEG" if suffix == "jpg" else "PNG")
    return stream.getvalue()


def voc_tar(ids: dict[str, tuple[str, ...]]) -> bytes:
    """A small VOC archive: `ids` by split, `more` has a picture only; and things that nobody asked for."""
    stream = io.BytesIO()
    inside = ARCHIVES["voc2012"].inside
    with tarfile.open(fileobj=stream, mode="w") as archive:
        add(archive, inside + "ImageSets/Main/cat_train.txt", b"")
        add(archive, inside + "SegmentationObject/a.png", b"not wanted")
        for split, names in ids.items():
            for name in names:
                add(archive, f"{inside}JPEGImages/{name}.jpg", picture("RGB", "jpg"))
            if split != "more":
                listed = "".join(f"{name}\n" for name in names).encode()
                add(archive, f"{inside}ImageSets/Segmentation/{split}.txt", listed)
                for name in names:
                    add(archive, f"{inside}SegmentationClass/{name}.png", picture("L", "png", 7))
        add(archive, inside + "Annotations/a.xml", b"<annotation/>")
    return stream.getvalue()


def sbd_tgz(names: tuple[str, ...]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for number, name in enumerate(names, start=1):
            matlab = io.BytesIO()
            savemat(matlab, {"GTcls": {"Segmentation": np.full((8, 12), number, np.uint8), "CategoriesPresent": [1]}})
            add(archive, f"{ARCHIVES['sbd'].inside}cls/{name}.mat", matlab.getvalue())
    return stream.getvalue()


@pytest.fixture
def offered(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Both archives, small, on our server, with their true sums."""
    contents = {
        "voc2012": voc_tar({"train": ("a", "b"), "val": ("c",), "more": ("d", "e")}),
        "sbd": sbd_tgz(("a", "c", "d", "e")),
    }
    for name, content in contents.items():
        real = ARCHIVES[name]  # type: ignore[index]
        small = Archive(
            url=real.url,
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            inside=real.inside,
            last=real.last,
            license=real.license,
        )
        monkeypatch.setitem(ARCHIVES, name, small)
        server.files["/mirror/" + real.url.rsplit("/", 1)[1]] = content
    monkeypatch.setattr(fetch_module, "FIRST_WAIT_S", 0.001)
    return server


def test_fetch_voc_then_sbd(offered: Server, tmp_path: Path) -> None:
    mirror = offered.url + "/mirror/"
    report = fetch("voc2012", tmp_path / "voc", mirror=mirror)
    assert report.files == 5 + 3 + 1
    assert report.splits == {"train": 2, "val": 1}
    assert "flickr" in report.summary()
    dataset = VocDataset.open(tmp_path / "voc")
    assert dataset.mask("c").shape == (8, 12)
    assert sorted(p.name for p in (tmp_path / "voc").iterdir()) == [
        "Annotations", "ImageSets", "JPEGImages", "SegmentationClass", "classes.txt", "recipe.json",
    ]  # fmt: skip
    report = fetch("sbd", tmp_path / "voc", mirror=mirror)
    assert report.files == 2
    assert dataset.ids("trainaug") == ("a", "b", "d", "e")  # c is of val
    assert int(read_mask(tmp_path / "voc/SegmentationClass/a.png")[0, 0]) == 7  # VOC's own mask stays
    assert int(dataset.mask("d")[0, 0]) == 3


def test_fetching_what_is_whole_asks_nobody(offered: Server, tmp_path: Path) -> None:
    fetch("voc2012", tmp_path / "voc", mirror=offered.url + "/mirror", keep_archive=True)
    assert (tmp_path / "voc/downloads/VOCtrainval_11-May-2012.tar").is_file()
    offered.asked.clear()
    report = fetch("voc2012", tmp_path / "voc", mirror=offered.url + "/mirror")
    assert (report.files, offered.asked) == (0, [])
    assert report.splits == {"train": 2, "val": 1}


def test_sbd_needs_voc(offered: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fetch voc2012"):
        fetch("sbd", tmp_path / "voc", mirror=offered.url + "/mirror")
    assert not (tmp_path / "voc").exists()
    assert offered.asked == []


def test_a_folder_with_other_things(offered: Server, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        fetch("voc2012", tmp_path, mirror=offered.url + "/mirror")
    assert offered.asked == []


def test_interrupted_unpacking_is_done_again(offered: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill half way leaves no list; the next run takes the archive that is there."""
    written = fetch_module.write_bytes

    def dies(path: Path, data: bytes) -> None:
        if path.suffix == ".xml":
            raise KeyboardInterrupt
        written(path, data)

    monkeypatch.setattr(fetch_module, "write_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        fetch("voc2012", tmp_path / "voc", mirror=offered.url + "/mirror")
    assert not (tmp_path / "voc/ImageSets").exists()
    monkeypatch.setattr(fetch_module, "write_bytes", written)
    offered.asked.clear()
    assert fetch("voc2012", tmp_path / "voc", mirror=offered.url + "/mirror").files == 9
    assert offered.asked == []


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    """Names that climb, absolute names, links and devices: nothing of them arrives."""
    inside = ARCHIVES["voc2012"].inside
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        add(archive, "../../evil.txt", b"x")
        add(archive, "/etc/evil.txt", b"x")
        add(archive, inside + "../../../evil.txt", b"x")
        add(archive, inside + "JPEGImages/../../evil.jpg", b"x")
        add(archive, inside + "JPEGImages/sub/evil.jpg", b"x")
        for kind, target in ((tarfile.SYMTYPE, "/etc"), (tarfile.LNKTYPE, "evil.txt"), (tarfile.FIFOTYPE, "")):
            link = tarfile.TarInfo(inside + f"JPEGImages/link{ord(kind)}.jpg")
            link.type, link.linkname = kind, target
            archive.addfile(link)
        add(archive, inside + "JPEGImages/good.jpg", picture("RGB", "jpg"))
        add(archive, inside + "ImageSets/Segmentation/train.txt", b"good\n")
        add(archive, inside + "ImageSets/Segmentation/val.txt", b"good\n")
    out = tmp_path / "deep/in/out"
    assert fetch_module.unpack_voc(members(tmp_path / "evil.tar", inside), out) == 1
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink()}
    assert found == {"evil.tar"} | {
        f"deep/in/out/{name}"
        for name in (
            "JPEGImages/good.jpg",
            "classes.txt",
            "ImageSets/Segmentation/train.txt",
            "ImageSets/Segmentation/val.txt",
        )
    }


def test_a_huge_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "MAX_FILE", 100)
    with tarfile.open(tmp_path / "big.tar", "w") as archive:
        add(archive, "in/JPEGImages/a.jpg", b"x" * 101)
    with pytest.raises(DataError, match="expected at most 100"):
        list(members(tmp_path / "big.tar", "in/"))


@pytest.mark.parametrize("cut", [700, 40_000])
def test_a_damaged_archive(tmp_path: Path, cut: int) -> None:
    with tarfile.open(tmp_path / "whole.tgz", "w:gz") as archive:
        add(archive, "in/a", np.random.default_rng(0).bytes(60_000))
    (tmp_path / "cut.tgz").write_bytes((tmp_path / "whole.tgz").read_bytes()[:cut])
    with pytest.raises(DataError, match="not a readable archive"):
        list(members(tmp_path / "cut.tgz", "in/"))


def test_archives_without_their_content(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no segmentation lists"):
        fetch_module.unpack_voc(iter([("JPEGImages/a.jpg", b"x")]), tmp_path)
    with pytest.raises(DataError, match="not a class mask of SBD"):
        read_sbd(b"not matlab", "cls/a.mat")


def test_the_official_addresses() -> None:
    for archive in ARCHIVES.values():
        assert archive.url.startswith(("http://host.robots.ox.ac.uk/", "https://www2.eecs.berkeley.edu/"))
        assert len(archive.sha256) == 64
        assert archive.size > 10**9
        assert "research" in archive.license
