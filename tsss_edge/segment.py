"""Pictures -> label maps at their own resolution: preprocess, network, upsample and argmax, for one picture or files."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Placement, Preprocess, Struct
from tsss_edge.backends import Backend, Outputs, open_backend
from tsss_edge.data.pictures import is_picture, read_image
from tsss_edge.drawing.sheet import Tile, tile, write_sheet
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.machine import track
from tsss_edge.segmentation import Segmentation

T = TypeVar("T")
SHEET = 24  # pictures on a contact sheet


class SegmentReport(Struct, frozen=True):
    """What `segment_files` did. `failed` holds one line for each picture that could not be read, `skipped` names other files."""

    images: int
    failed: tuple[str, ...]
    out: str
    skipped: tuple[str, ...] = ()
    finished_before: int = 0  # masks of an earlier run, which were left as they are

    def summary(self) -> str:
        """For a terminal: the count, then every failure, then what was no picture."""
        shown = ", ".join(self.skipped[:3]) + (", ..." if len(self.skipped) > 3 else "")
        others = [f"{len(self.skipped)} files are no pictures: {shown}"] if self.skipped else []
        before = f", {self.finished_before} were there before" if self.finished_before else ""
        return "\n".join(
            [f"{self.images} masks in {self.out}{before}", *(f"failed: {line}" for line in self.failed), *others]
        )


def segment_image(backend: Backend, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label a picture.

    Args:    image: (H,W,3) uint8 RGB, any size.
    Returns: (H,W) uint8 class ids; 255 where the network's fit (`crop`) does not see the picture. Fresh memory.
    Raises:  ArtifactError: the network has no class output (an L-Net).
    """
    return labels_at(run_network(backend, image), image.shape[:2], backend.preprocess.place(image.shape[:2]))


def load_picture(path: Path, spec: Preprocess) -> NDArray[np.uint8]:
    """A picture as the network gets it: (1,H,W,3) uint8 RGB. Raises: DataError: unreadable."""
    from tsss_edge.kernels.preprocess import preprocess

    return preprocess(read_image(path), spec, bgr=False)[None]


def run_network(backend: Backend, image: NDArray[np.uint8]) -> Outputs:
    """Preprocess a picture, (H,W,3) uint8 RGB, and run the network on it; outputs live until the next call."""
    from tsss_edge.kernels.preprocess import preprocess

    x = preprocess(image, backend.preprocess, bgr=False)[None]
    return backend.infer(x.repeat(backend.min_batch, axis=0))


def labels_at(outputs: Outputs, frame_hw: tuple[int, int], placement: Placement) -> NDArray[np.uint8]:
    """First picture of a network's outputs -> (H,W) uint8 labels at `frame_hw`.

    `logits` are upsampled bilinearly before the argmax; `labels` are resized to the nearest.
    Raises: ArtifactError: neither of them is there.
    """
    from tsss_edge.kernels.upsample_argmax import upsample_argmax

    if "logits" in outputs:
        return upsample_argmax(outputs["logits"][0], frame_hw, placement)
    if "labels" in outputs:
        return resize_labels(outputs["labels"][0], frame_hw, placement)
    raise ArtifactError(f"the network gives {', '.join(outputs) or 'nothing'}; segmenting needs logits or labels")


def resize_labels(
    labels: NDArray[np.uint8],
    frame_hw: tuple[int, int],
    placement: Placement,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Labels, (h,w) of any stride -> frame size (`out`), nearest with half-pixel centres; 255 outside `placement.source`."""
    x, y, width, height = placement.source
    left, top, columns, rows = placement.target
    input_h, input_w = placement.input_hw or labels.shape
    row = (2 * top * height + (2 * np.arange(height) + 1) * rows) * labels.shape[0] // (2 * height * input_h)
    column = (2 * left * width + (2 * np.arange(width) + 1) * columns) * labels.shape[1] // (2 * width * input_w)
    result = np.empty(frame_hw, np.uint8) if out is None else out
    result[...] = IGNORE
    # "clip" changes nothing here; with the default mode NumPy would make another array of the frame's size first
    np.take(labels[row], column, axis=1, out=result[y : y + height, x : x + width], mode="clip")
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Files


def segment_files(
    engine: Path,
    inputs: Sequence[str],
    out: Path,
    *,
    overlay: bool = False,
    sheet: Path | None = None,
    threads: int | None = None,
    trust: bool = False,
) -> SegmentReport:
    """Write an index PNG for every picture, and with `overlay` a JPEG to look at beside it (`NAME.overlay.jpg`).

    A picture that cannot be read is reported and does not stop the others. Pictures of a folder keep their place
    below it.

    Args:    engine: engine, ONNX file or checkpoint.
             inputs: pictures, folders (searched in depth) and globs.
             sheet: a PNG or JPEG with the first `SHEET` pictures and their labels.
    Raises:  DataError: nothing found, or two pictures would write one mask.
             ArtifactError, UnavailableError: as `open_backend`.
    """
    jobs = plan(inputs, out)
    failed: list[str] = []
    tiles: list[Tile] = []
    with open_backend(engine, threads=threads, trust=trust) as backend:
        for picture, target in track(list(jobs.items()), "segment"):
            try:
                found = segment_file(backend, picture, target, overlay)
            except DataError as error:
                failed.append(str(error))
                continue
            if sheet is not None and len(tiles) < SHEET:
                tiles.append(tile(picture.name, found.image, found.labels))
        if sheet is not None and tiles:
            write_sheet(sheet, tiles, backend.classes)
    skipped = no_pictures(inputs, out)
    return SegmentReport(images=len(jobs) - len(failed), failed=tuple(failed), out=str(out), skipped=skipped)


def segment_file(backend: Backend, picture: Path, target: Path, overlay: bool) -> Segmentation:
    """Write the mask of one picture, and the JPEG to look at with `overlay`. Raises: DataError: it cannot be read."""
    image = read_image(picture)
    found = Segmentation(segment_image(backend, image), image, backend.classes)
    found.save(target)
    if overlay:
        found.save(target.with_suffix(".overlay.jpg"))
    return found


def plan(inputs: Sequence[str], out: Path) -> dict[Path, Path]:
    """Picture -> mask to write, in a fixed order. In a folder that holds `out`, masks of an earlier run are no pictures.

    Raises: DataError: nothing found, two masks of one name, or a mask in the place of a picture.
    """
    jobs: dict[Path, Path] = {}
    for text in inputs:
        found = list(_expand(text, out.resolve()))
        if not found:
            raise DataError(f"{text}: no pictures there (.jpg, .png, .webp, .tif, ...)")
        for picture, relative in found:
            jobs[picture] = (out / relative).with_suffix(".png")
    owners: dict[Path, Path] = {}
    pictures = {picture.resolve() for picture in jobs}
    for picture, target in jobs.items():
        if target.resolve() in pictures:
            raise DataError(f"{picture}: its mask would overwrite the picture {target}; choose another --out folder")
        if target in owners:
            raise DataError(f"{picture} and {owners[target]} would both write {target}; segment them into two folders")
        owners[target] = picture
    return jobs


def no_pictures(inputs: Sequence[str], out: Path) -> tuple[str, ...]:
    """Files in the folders among `inputs` that are no pictures, hidden ones and those below `out` left out; sorted paths."""
    found = (p for text in inputs if Path(text).is_dir() for p in Path(text).rglob("*"))
    others = (p for p in found if p.is_file() and not is_picture(p) and not p.name.startswith("."))
    return tuple(sorted(str(p) for p in others if out.resolve() not in p.resolve().parents))


def _expand(text: str, out: Path) -> Iterator[tuple[Path, Path]]:
    """Pictures that one argument names, each with its place below the output folder; none of those in `out` (absolute)."""
    path = Path(text)
    if path.is_dir():
        pictures = sorted(p for p in path.rglob("*") if is_picture(p))
        written = out if path.resolve() in out.parents else None
        yield from ((p, p.relative_to(path)) for p in pictures if written not in p.resolve().parents)
    elif path.exists() or not glob.has_magic(text):
        yield path, Path(path.name)  # a missing file is reported with the others when it is read
    else:
        matches = (Path(p) for p in sorted(glob.glob(text, recursive=True)))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        yield from ((p, Path(p.name)) for p in matches if is_picture(p))
