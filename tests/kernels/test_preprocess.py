"""The CPU twin of `preprocess`: hand-made frames, exact bilinear sums, placements, wrong arrays."""

from __future__ import annotations

import numpy as np
import pytest

from tsss_edge.artifacts import Preprocess
from tsss_edge.kernels.preprocess import PreprocessPlan, preprocess

ROUNDING = (
    1  # OpenCV keeps weights in 1/2048: two of them off by half a step on a step of 255 are 0.12, and then it rounds
)


def resized(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Bilinear, half-pixel centres, in double precision, not rounded."""
    lines = image.astype(np.float64)
    for axis, size in enumerate(size_hw):
        position = ((np.arange(size) + 0.5) * image.shape[axis] / size - 0.5).clip(0, image.shape[axis] - 1)
        low = position.astype(np.int64)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        weight = (position - low).reshape([-1 if a == axis else 1 for a in range(3)])
        lines = lines.take(low, axis) * (1 - weight) + lines.take(high, axis) * weight
    return lines


def test_same_size_only_swaps_channels() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    spec = Preprocess(size_hw=(64, 96))
    np.testing.assert_array_equal(preprocess(frame, spec, bgr=False), frame)
    np.testing.assert_array_equal(preprocess(frame, spec, bgr=True), frame[..., ::-1])


def test_two_columns_by_hand() -> None:
    """0 and 255 stretched to 32 columns: pixel x lies at (x + 0.5) / 16 - 0.5, clipped to 0-1."""
    frame = np.array([[[0] * 3, [255] * 3]], np.uint8)
    row = preprocess(frame, Preprocess(size_hw=(32, 32)), bgr=False)[5, :, 1]
    want = 255 * ((np.arange(32) + 0.5) / 16 - 0.5).clip(0, 1)
    np.testing.assert_allclose(row, want, rtol=0, atol=0.5 + 0.12)  # half a level, and OpenCV's weights


@pytest.mark.parametrize("bgr", [True, False])
@pytest.mark.parametrize("frame_hw", [(37, 51), (720, 1280), (96, 64), (1, 1)])
def test_matches_the_obvious_arithmetic(frame_hw: tuple[int, int], bgr: bool) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (*frame_hw, 3), dtype=np.uint8)
    got = preprocess(frame, Preprocess(size_hw=(64, 96)), bgr=bgr)
    want = resized(frame, (64, 96))[..., :: -1 if bgr else 1]
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got, want, rtol=0, atol=0.5 + ROUNDING)


@pytest.mark.parametrize("bgr", [True, False])
def test_letterbox_is_black_around_also_in_used_memory(bgr: bool) -> None:
    spec = Preprocess(size_hw=(96, 96), fit="letterbox")
    out = np.full((96, 96, 3), 77, np.uint8)
    frame = np.full((30, 60, 3), 200, np.uint8)
    assert PreprocessPlan((30, 60), spec, bgr=bgr)(frame, out) is out
    assert (out[24:72] == 200).all()
    assert not out[:24].any()
    assert not out[72:].any()


def test_crop_takes_the_middle() -> None:
    frame = np.zeros((32, 96, 3), np.uint8)
    frame[:, 32:64] = 255
    assert (preprocess(frame, Preprocess(size_hw=(32, 32), fit="crop"), bgr=True) == 255).all()


@pytest.mark.parametrize(
    ("image", "out", "words"),
    [
        (np.zeros((4, 4), np.uint8), None, r"expected uint8 \(H,W,3\)"),
        (np.zeros((4, 4, 3), np.float32), None, "float32"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((32, 64, 3), np.uint8), "out is uint8"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((32, 32, 3), np.float32), "out is float32"),
    ],
)
def test_wrong_arrays(image: np.ndarray, out: np.ndarray | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preprocess(image, Preprocess(size_hw=(32, 32)), bgr=True, out=out)


def test_a_plan_is_for_one_frame_size() -> None:
    plan = PreprocessPlan((8, 8), Preprocess(size_hw=(32, 32)), bgr=True)
    with pytest.raises(ValueError, match=r"image is uint8 \(8, 9, 3\); expected uint8 \(8, 8, 3\)"):
        plan(np.zeros((8, 9, 3), np.uint8), np.zeros((32, 32, 3), np.uint8))
