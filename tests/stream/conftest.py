"""Small videos and results that the stream tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamkit import MakeResult, MakeVideo, gray_image, write_video

from tsss_edge.stream.frames import Frame, FrameResult


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """`write_video` in the test's folder."""

    def make(name: str = "v.mp4", **options: Any) -> Path:
        return write_video(tmp_path / name, **options)

    return make


@pytest.fixture
def make_result() -> MakeResult:
    """A result whose labels are 0 on the left half and 1 on the right."""

    def make(
        index: int = 0, *, size_hw: tuple[int, int] = (48, 64), value: int = 100, captured: float = 0.0
    ) -> FrameResult:
        labels = np.zeros(size_hw, np.uint8)
        labels[:, size_hw[1] // 2 :] = 1
        image = gray_image(value, size_hw)
        return FrameResult(Frame(image, index, captured), labels, None, image, {"infer": 1.5}, age_ms=12.0)

    return make
