"""Planes to network input, to BGR, and the overlay on them: hand-made values, the obvious arithmetic, GPU against CPU."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hostcuda import HostKernels
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tsss_edge.artifacts import Preprocess, voc_color
from tsss_edge.kernels.overlay import overlay
from tsss_edge.kernels.overlay_yuv import YuvOverlayPlan, yuv_tint_table
from tsss_edge.kernels.preprocess_yuv import YuvPreprocessPlan, yuv_to_bgr
from tsss_edge.kernels.yuv import Colour, Yuv, chroma_hw, yuv_bytes

PALETTE = tuple(voc_color(k) for k in range(5))
COLOURS = [Colour(matrix, full) for matrix in ("bt601", "bt709") for full in (False, True)]  # type: ignore[arg-type]
FITS = [("stretch", (270, 480)), ("letterbox", (97, 640)), ("crop", (481, 269)), ("stretch", (33, 31))]
FITS += [("crop", (1, 1)), ("stretch", (101, 333))]  # the last has weights that lie between two steps of 1/256

# A plane is rounded (0.5), after two weights that are rounded to 1/256 (0.5 of a step of 255 each); the matrix makes of that at
# most (1.5 * 1.164 + 1.5 * 2.112), and rounds.
EXACT = 1.5 * 1.165 + 1.5 * 2.113 + 0.5


@pytest.fixture(scope="module")
def host(host_kernels: Path) -> HostKernels:
    return HostKernels(host_kernels)


def picture(frame_hw: tuple[int, int], colour: Colour = COLOURS[0], *, pairs: bool = False, seed: int = 0) -> Yuv:
    data = np.random.default_rng(seed).integers(0, 256, yuv_bytes(frame_hw), dtype=np.uint8)
    return Yuv.over(data, frame_hw, colour, pairs=pairs)


def pitched(dense: Yuv) -> Yuv:
    """The same picture in rows that are longer than it is wide."""
    y = np.zeros((dense.y.shape[0], dense.y.shape[1] + 13), np.uint8)[:, : dense.y.shape[1]]
    chroma = tuple(
        np.zeros((p.shape[0], p.shape[1] + 5, *p.shape[2:]), np.uint8)[:, : p.shape[1]] for p in dense.chroma
    )
    out = Yuv(y, chroma, dense.colour)
    dense.copy_to(out)
    return out


def rgb_of(y: np.ndarray, u: np.ndarray, v: np.ndarray, colour: Colour) -> np.ndarray:
    """The textbook's formula, not rounded: H.273, table 4 and equations for `matrix`."""
    red, blue = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[colour.matrix]
    luma = y / 255 if colour.full else (y - 16) / 219
    pb, pr = (u - 128) / (255 if colour.full else 224), (v - 128) / (255 if colour.full else 224)
    r, b = luma + 2 * (1 - red) * pr, luma + 2 * (1 - blue) * pb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return (255 * np.stack([r, g, b], -1)).clip(0, 255)


def sampled(plane: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Bilinear, half-pixel centres, in double precision."""
    lines = plane.astype(np.float64)
    for axis, size in enumerate(size_hw):
        position = ((np.arange(size) + 0.5) * plane.shape[axis] / size - 0.5).clip(0, plane.shape[axis] - 1)
        low = position.astype(np.int64)
        high = np.minimum(low + 1, plane.shape[axis] - 1)
        weight = (position - low).reshape([-1 if a == axis else 1 for a in range(2)])
        lines = lines.take(low, axis) * (1 - weight) + lines.take(high, axis) * weight
    return lines


@pytest.mark.parametrize("colour", COLOURS, ids=str)
def test_primary_colours_by_hand(colour: Colour) -> None:
    """Planes of one colour each, made by `from_rgb`, give that colour back within the rounding of the planes."""
    for rgb in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)):
        yuv = np.rint(colour.from_rgb(np.array(rgb))).clip(0, 255).astype(np.uint8)
        flat = Yuv.empty((4, 6), colour)
        flat.y[...], flat.u[...], flat.v[...] = yuv
        assert np.abs(yuv_to_bgr(flat)[2, 3, ::-1].astype(int) - rgb).max() <= 2


def test_white_and_black_of_video_range() -> None:
    limited, full = Colour(), Colour(full=True)
    assert np.rint(limited.from_rgb(np.array([255, 255, 255]))).tolist() == [235, 128, 128]
    assert np.rint(limited.from_rgb(np.array([0, 0, 0]))).tolist() == [16, 128, 128]
    assert np.rint(full.from_rgb(np.array([255, 0, 0]))).tolist() == [76, 85, 256]
    assert limited.terms == (16, 9539, 13075, 3209, 6660, 16525)


@pytest.mark.parametrize("colour", COLOURS, ids=str)
@pytest.mark.parametrize("frame_hw", [(37, 51), (270, 480), (1, 1)])
def test_input_matches_the_obvious_arithmetic(frame_hw: tuple[int, int], colour: Colour) -> None:
    frame, size_hw = picture(frame_hw, colour), (64, 96)
    got = YuvPreprocessPlan(frame_hw, Preprocess(size_hw=size_hw))(frame, np.empty((*size_hw, 3), np.uint8))
    want = rgb_of(*(sampled(p, size_hw) for p in (frame.y, frame.u, frame.v)), colour)
    difference = np.abs(got - want)
    assert difference.max() <= EXACT
    assert difference.mean() < 0.7, "half a level of each plane, on the mean"


def test_a_photograph_as_bgr_gives_it() -> None:
    """As near to the picture that was encoded as OpenCV's way, which takes a chroma value for two by two pixels; never far from it."""
    rng = np.random.default_rng(5)
    rgb = cv2.GaussianBlur(rng.integers(0, 256, (270, 480, 3), dtype=np.uint8), (0, 0), 4)
    rgb = cv2.normalize(rgb, None, 20, 235, cv2.NORM_MINMAX)
    data = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    frame = Yuv.over(data, (270, 480), Colour())
    got = YuvPreprocessPlan((270, 480), Preprocess(size_hw=(96, 160)))(frame, np.empty((96, 160, 3), np.uint8))
    want = cv2.resize(cv2.cvtColor(data.reshape(405, 480), cv2.COLOR_YUV2RGB_I420), (160, 96))
    true = cv2.resize(rgb, (160, 96))
    assert error(got, true) <= error(want, true) and error(got, want) < 2
    opencv = cv2.cvtColor(data.reshape(405, 480), cv2.COLOR_YUV2RGB_I420)
    assert error(yuv_to_bgr(frame)[..., ::-1], rgb) <= error(opencv, rgb)


def error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean absolute difference, in levels of 255."""
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize("pairs", [False, True], ids=["I420", "NV12"])
@pytest.mark.parametrize("colour", COLOURS[::3], ids=str)
@pytest.mark.parametrize(("fit", "frame_hw"), FITS)
def test_input_on_gpu_and_cpu_is_the_same(
    host: HostKernels, fit: Any, frame_hw: tuple[int, int], colour: Colour, pairs: bool
) -> None:
    spec = Preprocess(size_hw=(128, 256), fit=fit)
    frame = picture(frame_hw, colour, pairs=pairs)
    want = YuvPreprocessPlan(frame_hw, spec)(frame, np.full((128, 256, 3), 9, np.uint8))
    np.testing.assert_array_equal(host.preprocess_yuv(frame, spec), want)
    np.testing.assert_array_equal(host.preprocess_yuv(pitched(frame), spec), want)
    np.testing.assert_array_equal(YuvPreprocessPlan(frame_hw, spec)(pitched(frame), np.empty_like(want)), want)


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 300), w=st.integers(1, 300), seed=st.integers(0, 99))
def test_any_size_on_gpu_and_cpu_is_the_same(host_kernels: Path, h: int, w: int, seed: int) -> None:
    frame, spec = picture((h, w), seed=seed), Preprocess(size_hw=(32, 256), fit="crop" if seed % 2 else "stretch")
    want = YuvPreprocessPlan((h, w), spec)(frame, np.empty((32, 256, 3), np.uint8))
    np.testing.assert_array_equal(HostKernels(host_kernels).preprocess_yuv(frame, spec), want)


def labels_of(frame_hw: tuple[int, int], seed: int, run: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.choice([0, 1, 2, 3, 4, 9, 255], (-(-frame_hw[0] // run), -(-frame_hw[1] // run))).astype(np.uint8)
    return np.ascontiguousarray(small.repeat(run, 0).repeat(run, 1)[: frame_hw[0], : frame_hw[1]])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), h=st.integers(1, 9), w=st.integers(1, 70), run=st.integers(1, 40), alpha=st.floats(0, 1)
)
def test_overlay_matches_the_formula(seed: int, h: int, w: int, run: int, alpha: float) -> None:
    frame, labels = picture((h, w), COLOURS[seed % 4], seed=seed), labels_of((h, w), seed, run)
    tints, keep = yuv_tint_table(PALETTE, frame.colour, alpha, None)
    tint = tints[labels].astype(np.int64)
    shown = tint[..., 3] == 1
    luma = np.where(shown, (frame.y.astype(np.int64) * keep + tint[..., 0]) >> 8, frame.y)
    rows, columns = (np.minimum(np.arange(2 * n), size - 1) for n, size in zip(chroma_hw((h, w)), (h, w), strict=True))
    blocks = (len(rows) // 2, 2, len(columns) // 2, 2)
    shown4 = shown[rows][:, columns].reshape(blocks)
    kept = np.where(shown4, keep, 256).sum((1, 3))
    chroma = [
        (plane.astype(np.int64) * kept + (tint[rows][:, columns, k].reshape(blocks) * shown4).sum((1, 3)) + 512) >> 10
        for plane, k in ((frame.u, 1), (frame.v, 2))
    ]
    YuvOverlayPlan((h, w), PALETTE, frame.colour, alpha)(frame, labels)
    for got, want in zip((frame.y, frame.u, frame.v), (luma, *chroma), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("pairs", [False, True], ids=["I420", "NV12"])
@pytest.mark.parametrize("frame_hw", [(270, 480), (33, 31), (1, 7)])
@pytest.mark.parametrize("run", [1, 3, 24])
def test_overlay_on_gpu_and_cpu_is_the_same(
    host: HostKernels, frame_hw: tuple[int, int], run: int, pairs: bool
) -> None:
    frame, labels = picture(frame_hw, COLOURS[3]), labels_of(frame_hw, 4, run)
    on_gpu = pitched(picture(frame_hw, COLOURS[3], pairs=pairs)) if pairs else frame.copy()
    frame.copy_to(on_gpu)
    host.overlay_yuv(on_gpu, labels, *yuv_tint_table(PALETTE, COLOURS[3], 0.5, (0, 1, 2, 3)))
    YuvOverlayPlan(frame_hw, PALETTE, COLOURS[3], shown=(0, 1, 2, 3))(frame, labels)
    for got, want in zip((on_gpu.y, on_gpu.u, on_gpu.v), (frame.y, frame.u, frame.v), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("colour", COLOURS, ids=str)
def test_overlay_on_planes_is_that_of_bgr_within_a_few_levels(colour: Colour) -> None:
    """Inside of regions: three values are rounded once more, and the matrix makes of that at most 2.1 and 1.2 levels."""
    rgb = np.zeros((64, 96, 3), np.float64) + np.linspace(60, 180, 96)[:, None] * [1, 0.8, 0.9]
    frame = Yuv.empty((64, 96), colour)
    planes = np.rint(colour.from_rgb(rgb)).astype(np.uint8)
    frame.y[...], frame.u[...], frame.v[...] = planes[..., 0], planes[::2, ::2, 1], planes[::2, ::2, 2]
    labels = labels_of((64, 96), 2, 16)
    want = overlay(yuv_to_bgr(frame), labels, PALETTE)
    YuvOverlayPlan((64, 96), PALETTE, colour)(frame, labels)
    edge = cv2.dilate(labels, np.ones((7, 7))) != cv2.erode(labels, np.ones((7, 7)))
    assert np.abs(yuv_to_bgr(frame)[~edge].astype(int) - want[~edge]).max() <= 4


def test_calls_of_a_plan_allocate_nothing() -> None:
    frame, labels, spec = picture((240, 320)), labels_of((240, 320), 1, 9), Preprocess(size_hw=(64, 96))
    plans = YuvPreprocessPlan((240, 320), spec), YuvOverlayPlan((240, 320), PALETTE, frame.colour)
    out = np.empty((64, 96, 3), np.uint8)
    plans[0](frame, out), plans[1](frame, labels)
    tracemalloc.start()
    try:
        for _ in range(5):
            plans[0](frame, out), plans[1](frame, labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8192, "only Python's own call objects and views"


def test_wrong_arrays() -> None:
    frame, labels = picture((8, 8)), np.zeros((8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"the picture is \(8, 8\); this plan was made for \(8, 9\)"):
        YuvPreprocessPlan((8, 9), Preprocess(size_hw=(32, 32)))(frame, np.empty((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="out is float32"):
        YuvPreprocessPlan((8, 8), Preprocess(size_hw=(32, 32)))(frame, np.empty((32, 32, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected dense I420"):
        YuvOverlayPlan((8, 8), PALETTE, Colour())(picture((8, 8), pairs=True), labels)
    with pytest.raises(ValueError, match="labels is uint8"):
        YuvOverlayPlan((8, 8), PALETTE, Colour())(frame, labels[:, :4])
