"""The imported graph against the file it came from, both in ONNX Runtime, pixel by pixel."""
# Letters: N batch, K class, H, W network input, h, w grid of the output.

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Placement, Struct
from tsss_edge.backends.base import import_extra
from tsss_edge.errors import ArtifactError
from tsss_edge.export.foreign.answers import LabelOutput, Values
from tsss_edge.export.foreign.foreign_graph import Layout
from tsss_edge.export.foreign.normalise import Normalisation
from tsss_edge.files import reason

TIE = (
    2e-4  # two classes nearer than this share of the largest score count as equal (ours: ten times float32's rounding)
)
HALF_TIE = 4e-3  # the same where the original computes in FP16 (ours: four times the 2^-10 between its numbers)
LEAST_EQUAL = 0.99  # equal pixels at least, whatever the ties: a network that ties everywhere proves nothing

Runner = Callable[[NDArray[np.uint8]], Values]  # (1,H,W,3) uint8 RGB -> outputs by name


class ImportCheck(Struct, frozen=True):
    """Pixels compared on all pictures, and how many differ; every one of those is a tie of the original's scores."""

    pictures: int
    pixels: int
    different: int


def original_runner(path: Path, dtype: str, layout: Layout, how: Normalisation) -> Runner:
    """The file as it is, fed with pictures as its network was trained on them. Raises: ArtifactError: it cannot run."""
    session = _session(str(path))
    feed = session.get_inputs()[0].name

    def run(picture: NDArray[np.uint8]) -> Values:
        pixels: NDArray[Any] = how.apply(picture).astype(dtype) if dtype != "uint8" else picture
        if dtype == "uint8" and how.colors == "bgr":
            pixels = picture[..., ::-1]
        pixels = pixels.transpose(0, 3, 1, 2) if layout == "nchw" else pixels
        return _run(session, {feed: np.ascontiguousarray(pixels)})

    return run


def imported_runner(graph: Any) -> Runner:
    """The wrapped graph. Raises: ArtifactError: it cannot run."""
    session = _session(graph.SerializeToString())
    return lambda picture: _run(session, {"image": picture})


def _session(source: str | bytes) -> Any:
    runtime = import_extra("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ArtifactError(f"ONNX Runtime refuses the graph: {reason(error)}") from error


def _run(session: Any, feed: dict[str, NDArray[Any]]) -> Values:
    names = [output.name for output in session.get_outputs()]
    try:
        found = session.run(names, feed)
    except Exception as error:
        raise ArtifactError(f"ONNX Runtime cannot run the graph: {reason(error)}") from error
    return {name: np.asarray(value) for name, value in zip(names, found, strict=True) if isinstance(value, np.ndarray)}


def require_same_labels(
    path: Path,
    original: Runner,
    imported: Runner,
    answer: LabelOutput,
    grid: tuple[int, int],
    pictures: Sequence[NDArray[np.uint8]],
    *,
    classes: int,
    tie: float = TIE,
) -> ImportCheck:
    """Compare the labels on (1,H,W,3) pictures, at the resolution of the original's output.

    Args:    classes: number of names. tie: share of the largest score that two equal classes may be apart.
    Raises:  ArtifactError: an id without a name, a pixel differs whose two classes do not tie in the original, or its scores hold NaN.
    """
    pixels = different = 0
    for picture in pictures:
        value = original(picture)[answer.name]
        scores = _scores(value, answer)
        if scores is not None and np.isnan(scores).any():
            raise ArtifactError(
                f"{path}: its output {answer.name} holds NaN on a picture, so nothing can be compared; check --mean, --std and --scale"
            )
        labels = _original_labels(value, scores)
        if labels.max() >= classes:
            raise ArtifactError(
                f"{path}: gives class id {labels.max()} on a picture, but {classes} classes are named; name them all"
            )
        found = _imported_labels(imported(picture), answer, grid, picture.shape[1:3])
        wrong = labels != found
        if (worst := _not_tied(scores, labels, found, wrong, tie)) or wrong.mean() > 1 - LEAST_EQUAL:
            raise ArtifactError(
                f"{path}: not imported: {int(wrong.sum())} of {wrong.size} pixels differ from the original file, {worst} of them "
                "without a tie; this is a fault of the import, please report it with the file"
            )
        pixels, different = pixels + wrong.size, different + int(wrong.sum())
    return ImportCheck(pictures=len(pictures), pixels=pixels, different=different)


def _scores(value: NDArray[Any], answer: LabelOutput) -> NDArray[np.float64] | None:
    """(K,h,w) scores of the original, None where it gives class ids."""
    if answer.form == "argmax":
        return None
    plane = value.astype(np.float64)
    if answer.form == "mask":
        plane = plane.reshape(answer.grid_hw)
        return np.stack([np.full_like(plane, answer.middle), plane])
    return np.asarray(plane[0] if answer.layout == "nchw" else plane[0].transpose(2, 0, 1))


def _original_labels(value: NDArray[Any], scores: NDArray[np.float64] | None) -> NDArray[np.int64]:
    if scores is None:
        plane = value.reshape(value.shape[-2:] if value.shape[-1] != 1 else value.shape[1:3])
        return np.asarray(plane, np.int64)
    return np.asarray(scores.argmax(0), np.int64)


def _imported_labels(
    values: Values, answer: LabelOutput, grid: tuple[int, int], size_hw: tuple[int, ...]
) -> NDArray[np.int64]:
    from tsss_edge.kernels.upsample_argmax import upsample_argmax

    if answer.head == "labels":
        return np.asarray(values["labels"][0], np.int64)
    if grid == answer.grid_hw:
        return np.asarray(values["logits"][0].argmax(0), np.int64)
    height, width = size_hw
    whole = Placement(source=(0, 0, width, height), target=(0, 0, width, height), input_hw=(height, width))
    return np.asarray(upsample_argmax(values["logits"][0], (height, width), whole), np.int64)


def _not_tied(
    scores: NDArray[np.float64] | None,
    labels: NDArray[np.int64],
    found: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    tie: float,
) -> int:
    """How many of the `wrong` pixels have two classes whose scores really differ; infinite scores tie with their like alone."""
    if not wrong.any() or scores is None:
        return int(wrong.sum())
    rows, columns = np.nonzero(wrong)
    best, other = scores[labels[wrong], rows, columns], scores[found[wrong], rows, columns]
    largest = np.abs(scores[np.isfinite(scores)]).max(initial=0.0)
    return int((best > other + tie * largest).sum())
