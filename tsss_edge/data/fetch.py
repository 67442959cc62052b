"""`voc2012` or `sbd` -> the official data, downloaded, checked and laid out as a VOC set.

`sbd` adds the masks of the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011) to a fetched VOC 2012, and the list
`trainaug`: VOC train and SBD without VOC val. Hashes and sizes are those of torchvision and TensorFlow Datasets.
"""

from __future__ import annotations

import http.client
import io
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Struct
from tsss_edge.data.ids import check_id
from tsss_edge.data.voc import RECIPE, VOC_NAMES, VocDataset, claim, write_mask
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.files import sha256_file, write_bytes
from tsss_edge.machine import progress

Name = Literal["voc2012", "sbd"]
BLOCK = 1 << 20
TIMEOUT_S = 30.0
TRIES = 5  # without a byte gained in between
FIRST_WAIT_S = 1.0  # before the second try; doubled each time
MAX_FILE = 64 << 20  # bytes of one file in an archive; the largest real ones are below 1 MiB


@dataclass(frozen=True)
class Archive:
    """One official file. `inside`: its folder that is taken. `last`: the list that is written last; with it a set is whole."""

    url: str
    sha256: str
    size: int
    inside: str
    last: str
    license: str


ARCHIVES: dict[Name, Archive] = {
    "voc2012": Archive(
        url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        size=1_999_639_040,
        inside="VOCdevkit/VOC2012/",
        last="val",
        license="PASCAL VOC 2012: pictures from flickr, under flickr's terms of use; for research. Cite Everingham et al., 2012.",
    ),
    "sbd": Archive(
        url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        sha256="6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
        size=1_419_539_633,
        inside="benchmark_RELEASE/dataset/",
        last="trainaug",
        license="SBD: annotations of PASCAL VOC 2011 pictures, whose terms of use hold; for research. Cite Hariharan et al., 2011.",
    ),
}
VOC_FILES = re.compile(r"(JPEGImages/[\w-]+\.jpg|SegmentationClass/[\w-]+\.png|Annotations/[\w-]+\.xml)")
VOC_LISTS = re.compile(r"ImageSets/Segmentation/(train|val|trainval)\.txt")
SBD_MASKS = re.compile(r"cls/([\w-]+)\.mat")


class FetchReport(Struct, frozen=True):
    """What `fetch` made. `files` counts what was written from the archive."""

    name: str
    root: str
    files: int
    splits: dict[str, int]
    license: str

    def summary(self) -> str:
        """For a terminal."""
        lists = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        return f"{self.root}: {self.files} files of {self.name}; lists: {lists}\n{self.license}"


def fetch(name: Name, out: Path, *, mirror: str | None = None, keep_archive: bool = False) -> FetchReport:
    """Download an official set and lay it out. Run it again after an interruption to continue.

    A complete set is not touched; `files` is 0 then.

    Args:   out: folder of the set; for `sbd` one that `voc2012` was fetched to.
            mirror: address of a folder that holds the archive under its own name; its SHA-256 is checked all the same.
    Raises: DataError: see `download`; the archive is not as expected; `out` holds something else.
            UnavailableError: `sbd` without SciPy, which reads its MATLAB files.
    """
    archive = ARCHIVES[name]
    _prepare(name, out)
    whole = (out / f"ImageSets/Segmentation/{archive.last}.txt").is_file()
    files = 0 if whole else _fetch(name, archive, out, mirror, keep_archive=keep_archive)
    dataset = VocDataset.open(out)
    splits = {split: len(dataset.ids(split)) for split in dataset.splits}
    return FetchReport(name=name, root=str(out), files=files, splits=splits, license=archive.license)


def _fetch(name: Name, archive: Archive, out: Path, mirror: str | None, *, keep_archive: bool) -> int:
    file = archive.url.rsplit("/", 1)[1]
    path = out / "downloads" / file
    url = f"{mirror.rstrip('/')}/{file}" if mirror else archive.url
    require_room(out, archive.size)  # what is unpacked is about as large as the archive
    with progress(f"{name}: downloading", archive.size) as advance:
        download(url, path, sha256=archive.sha256, size=archive.size, advance=advance)
    with progress(f"{name}: unpacking", archive.size) as advance:
        files = UNPACKERS[name](members(path, archive.inside, advance), out)
    if not keep_archive:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    return files


def _prepare(name: Name, out: Path) -> None:
    """Check before the download what would stop the unpacking after it."""
    if name == "voc2012":
        claim(out, {"made by": "tsss-edge data fetch voc2012"})
        return
    if not (out / RECIPE).is_file() or not (out / "ImageSets/Segmentation/val.txt").is_file():
        raise DataError(f"{out}: SBD adds masks to VOC 2012; run `tsss-edge data fetch voc2012 --out {out}` first")
    if find_spec("scipy") is None:
        raise UnavailableError("SBD masks are MATLAB files, which SciPy reads: pip install 'tsss-edge[train]'")


def members(path: Path, inside: str, advance: Callable[..., None] = lambda _: None) -> Iterator[tuple[str, bytes]]:
    """Regular files of a tar archive below the folder `inside`: (name below it, content). Nothing is written.

    Links, devices and files outside `inside` are ignored. Raises: DataError: damaged, or a file is too large.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            place = 0
            for member in archive:
                advance(file.tell() - place)
                place = file.tell()
                if not member.isreg() or not member.name.startswith(inside):
                    continue
                if member.size > MAX_FILE:
                    raise DataError(f"{path}: {member.name} has {member.size} bytes, expected at most {MAX_FILE}")
                content = archive.extractfile(member)
                assert content is not None, "a regular file has content"
                yield member.name.removeprefix(inside), content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable archive ({error}); delete it and fetch it again") from error


def unpack_voc(content: Iterator[tuple[str, bytes]], out: Path) -> int:
    """Write pictures, masks and annotations as they come, the lists at the end. Returns the number of files."""
    lists: dict[str, bytes] = {}
    count = 0
    for name, data in content:
        if VOC_LISTS.fullmatch(name):
            lists[name] = data
        elif VOC_FILES.fullmatch(name):
            write_bytes(out / name, data)
            count += 1
    if not {f"ImageSets/Segmentation/{split}.txt" for split in ("train", "val")} <= set(lists):
        raise DataError(f"{out}: the archive has no segmentation lists; fetch it again")
    write_bytes(out / "classes.txt", ("\n".join(VOC_NAMES) + "\n").encode())
    for name, data in sorted(lists.items()):
        write_bytes(out / name, data)
    return count


def unpack_sbd(content: Iterator[tuple[str, bytes]], out: Path) -> int:
    """Write the masks that VOC does not have, and the list `trainaug`. Returns the number of masks.

    VOC's own masks stay: they are finer, and have the 255 border.
    """
    dataset = VocDataset.open(out)
    val, chosen, count = set(dataset.ids("val")), set(dataset.ids("train")), 0
    original = val | chosen
    for name, data in content:
        if not (match := SBD_MASKS.fullmatch(name)) or match[1] in val:
            continue
        chosen.add(check_id(match[1], name))
        if match[1] not in original:
            write_mask(dataset.mask_path(match[1]), read_sbd(data, name))
            count += 1
    if not count:
        raise DataError(f"{out}: the archive has no masks; fetch it again")
    write_bytes(out / "ImageSets/Segmentation/trainaug.txt", ("\n".join(sorted(chosen)) + "\n").encode())
    return count


def read_sbd(data: bytes, name: str) -> NDArray[np.uint8]:
    """A MATLAB file of SBD -> its class mask, (H,W) uint8. Raises: DataError: it has none."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        mask = loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0]
    except (MatReadError, KeyError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        raise DataError(f"{name}: not a class mask of SBD ({error}); fetch it again") from error
    return np.ascontiguousarray(mask, dtype=np.uint8)


UNPACKERS: dict[Name, Callable[[Iterator[tuple[str, bytes]], Path], int]] = {"voc2012": unpack_voc, "sbd": unpack_sbd}


def download(
    url: str,
    path: Path,
    *,
    sha256: str,
    size: int,
    advance: Callable[..., None] = lambda _: None,
    first_wait_s: float = FIRST_WAIT_S,
) -> None:
    """Fetch `url` to `path`. A correct file is kept; a partial download (`path`.part) is continued.

    Args:   size: bytes of the whole file. advance: called with the number of bytes gained.
    Raises: DataError: not http(s), no connection after some tries, refused, no room on disk, or not the expected file
            (what came is then deleted).
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: expected an http or https address")
    if path.is_file() and path.stat().st_size == size and sha256_file(path) == sha256:
        return
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    require_room(part.parent, size - _length(part))
    _fill(url, part, size, advance, first_wait_s)
    found = sha256_file(part)
    if found != sha256 or _length(part) != size:
        length = _length(part)
        part.unlink()
        raise DataError(
            f"{url}: expected {size} bytes with SHA-256 {sha256}, got {length} with {found}; deleted, try again or another mirror"
        )
    part.replace(path)


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def require_room(folder: Path, need: int) -> None:
    """Raise DataError when the disk of `folder` has fewer than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DataError(f"{folder}: {need} bytes are to come, {free} are free; make room or choose another disk")


def _fill(url: str, part: Path, size: int, advance: Callable[..., None], wait_s: float) -> None:
    """Append to `part` until it has `size` bytes. A broken connection is tried again; the wait grows while nothing comes."""
    fruitless = 0
    advance(_length(part))
    while (before := _length(part)) < size:
        try:
            _continue(url, part, size, advance)
            reason: Exception | str = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                raise DataError(f"{url}: the server answered {error.code} {error.reason}; use a mirror") from error
            reason = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = error
        fruitless = 0 if _length(part) > before else fruitless + 1
        if fruitless >= TRIES:
            raise DataError(f"{url}: nothing came in {TRIES} tries ({reason}); run it again, or use a mirror")
        if fruitless:
            time.sleep(wait_s * 2 ** (fruitless - 1))


def _continue(url: str, part: Path, size: int, advance: Callable[..., None]) -> None:
    """One request from where `part` ends; a server that cannot do that starts from zero."""
    have = _length(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        continues = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not continues:
            advance(-have)
            have = 0
        with part.open("ab" if have else "wb") as file:
            left = size - have  # at most one block more is taken, so that a wrong file cannot fill the disk
            while left > 0 and (block := answer.read(BLOCK)):
                left -= len(block)
                file.write(block)
                advance(len(block))
