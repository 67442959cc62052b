"""Results -> one JSON object a line: what was seen where, how old it is, what it cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes
from tsss_edge.errors import DataError
from tsss_edge.stream.frames import Result


class JsonLinesSink:
    """`NAME.jsonl`, or `-` for standard output. Lines are written whole and at once, so that `tail -f` works.

    Keys: `frame` (index at the source), `time_s` (since the first frame), `size` [width, height], `areas` {class name:
    share of the frame 0-1, only what is there}, `age_ms`, `stages_ms`, `dropped` (so far),
    `parity` (last verdict, where there is a parity watch).
    """

    wants_overlay = False

    def __init__(self, target: str, classes: Classes) -> None:
        self._classes = classes
        self._target = target
        self._file: BinaryIO | None = sys.stdout.buffer if target == "-" else _create(Path(target))
        self._started: float | None = None
        self._written = 0

    def write(self, result: Result) -> None:
        """Write one line. Raises: DataError: it could not be written (for one, a full disk)."""
        assert self._file is not None
        line = msgspec.json.encode(self._line(result)) + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise DataError(f"{self._target}: cannot be written ({error.strerror})") from error

    def _line(self, result: Result) -> dict[str, Any]:
        frame = result.frame
        if self._started is None:
            self._started = frame.captured
        self._written += 1
        line: dict[str, Any] = {
            "frame": frame.index,
            "time_s": round(frame.captured - self._started, 4),
            "size": [frame.image.shape[1], frame.image.shape[0]],
            "areas": class_areas(result.labels, self._classes),
            "age_ms": round(result.age_ms, 3),
            "stages_ms": {name: round(value, 3) for name, value in result.stages_ms.items()},
            "dropped": frame.index + 1 - self._written,
        }
        if result.parity is not None:
            line["parity"] = result.parity
        return line

    def close(self) -> None:
        if self._file is not None and self._target != "-":
            self._file.close()
        self._file = None


def _create(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror})") from error


def class_areas(labels: NDArray[np.uint8], classes: Classes) -> dict[str, float]:
    """Share of the pixels of each class that occurs, 0-1, by name; pixels of 255 belong to none."""
    counts = label_histogram(labels)
    return {name: round(float(counts[i]) / labels.size, 6) for i, name in enumerate(classes.names) if counts[i]}


def label_histogram(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels by label: (H,W) uint8 -> (256,) counts. OpenCV, because `np.bincount` first widens every pixel."""
    histogram = cv2.calcHist([labels], [0], None, [256], [0, 256])
    return np.rint(histogram.reshape(256)).astype(np.int64)
