"""Two habits of OpenCV's video code put right: lines of its own on standard error, and pictures that are not BGR."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# FFmpeg inside OpenCV writes about every damaged packet; our error says it once. What the user sets stays.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block OpenCV logs nothing, because what it would say becomes our error message."""
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(before)


def as_bgr(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(H,W), (H,W,1), (H,W,3) or (H,W,4) uint8 as OpenCV returns it -> (H,W,3) BGR, without a copy where it is that."""
    if image.ndim == 3 and image.shape[2] == 3:
        return image.astype(np.uint8, copy=False)
    channels = 1 if image.ndim == 2 else image.shape[2]
    code = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}[channels]
    return np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)
