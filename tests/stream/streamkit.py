"""What the stream tests share beside fixtures: plain pictures, and reading a video back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.stream.frames import FrameResult

MakeVideo = Callable[..., Path]
MakeResult = Callable[..., FrameResult]


def gray_image(value: int, size_hw: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    """One grey value everywhere: survives any codec to within a few steps."""
    return np.full((*size_hw, 3), value, np.uint8)


def write_video(path: Path, *, frames: int = 10, fps: float = 25.0, size_hw: tuple[int, int] = (48, 64)) -> Path:
    """A video whose n-th frame is grey of value 20 + 10 n."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, size_hw[::-1])
    for n in range(frames):
        writer.write(gray_image(20 + 10 * n % 220, size_hw))
    writer.release()
    return path


def read_video(path: Path) -> tuple[float, list[NDArray[np.uint8]]]:
    """Rate and every frame of a video."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while (read := capture.read())[0]:
        frames.append(np.asarray(read[1], dtype=np.uint8))
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return fps, frames
