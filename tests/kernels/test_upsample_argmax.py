"""The CPU twin of `upsample_argmax`: hand-made grids, the obvious arithmetic, PyTorch, and properties."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernelkit import assert_labels, random_logits, whole

from tsss_edge.artifacts import Placement, Preprocess
from tsss_edge.kernels.upsample_argmax import UpsampleArgmaxPlan, upsample_argmax

SIZES = [(64, 64), (37, 51), (720, 1280), (1, 1), (3, 200), (200, 3), (16, 24)]


def test_two_columns_by_hand() -> None:
    """Grid points lie at pixels 3.5 and 11.5; class 0 falls from 1 to 0 between them, class 1 rises to 3: equal at 5.5.

    0: 1 - t, 1: 3 t with t = (x - 3.5) / 8, so class 1 wins from t > 1/4, which is x > 5.5.
    """
    logits = np.array([[[1, 0]], [[0, 3]]], np.float32)
    labels = upsample_argmax(logits, (8, 16))
    assert labels.tolist() == [[0] * 6 + [1] * 10] * 8


def test_four_corners_by_hand() -> None:
    """Class 1 is 4 at one corner of a 2x2 grid, class 0 is 1 everywhere: class 1 wins where u v > 1/4."""
    logits = np.array([[[1, 1], [1, 1]], [[0, 0], [0, 4]]], np.float32)
    labels = upsample_argmax(logits, (16, 16))
    t = ((np.arange(16) - 3.5) / 8).clip(0, 1)
    np.testing.assert_array_equal(labels, (t[:, None] * t > 0.25).astype(np.uint8))


def test_a_tie_goes_to_the_first_class() -> None:
    """At a frame of the grid's own size pixels are grid points. Equal classes: the smaller id, wherever they lie."""
    logits = np.array([[[0, 5, 5]], [[5, 5, 0]], [[5, 5, 5]]], np.float32)
    assert upsample_argmax(logits, (1, 3)).tolist() == [[1, 0, 0]]
    assert upsample_argmax(np.zeros((7, 4, 4), np.float32), (32, 32)).max() == 0


def test_an_exact_tie_inside_a_cell_goes_to_the_smaller_class() -> None:
    """16 t and 1 are equal at t = 1/16, which is pixel 4; the constant wins before it, the other after it."""
    rising, constant = [[0, 16]], [[1, 1]]
    assert upsample_argmax(np.array([rising, constant], np.float32), (1, 16))[0, 3:6].tolist() == [1, 0, 0]
    assert upsample_argmax(np.array([constant, rising], np.float32), (1, 16))[0, 3:6].tolist() == [0, 0, 1]


@pytest.mark.parametrize("frame_hw", SIZES)
@pytest.mark.parametrize("smooth", [True, False])
def test_matches_the_obvious_arithmetic(frame_hw: tuple[int, int], smooth: bool) -> None:
    logits = random_logits((21, 9, 13), smooth=smooth)
    assert_labels(upsample_argmax(logits, frame_hw), logits, whole(logits, frame_hw))


def test_matches_pytorch() -> None:
    torch = pytest.importorskip("torch")
    logits = random_logits((21, 64, 64))
    full = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], (720, 1280), mode="bilinear", align_corners=False
    )[0]
    labels = upsample_argmax(logits, (720, 1280))
    differs = full.argmax(0).numpy() != labels
    assert differs.mean() < 1e-5
    top = full.topk(2, dim=0).values
    assert (top[0] - top[1]).numpy()[differs].max(initial=0) < 1e-4  # PyTorch sums in float32


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("frame_hw", [(270, 480), (481, 269), (97, 640)])
def test_placements(fit: str, frame_hw: tuple[int, int]) -> None:
    spec = Preprocess(size_hw=(128, 160), fit=fit)  # type: ignore[arg-type]
    logits = random_logits((6, 16, 20), seed=1)
    placement = spec.place(frame_hw)
    assert_labels(upsample_argmax(logits, frame_hw, placement), logits, placement)


def test_outside_the_crop_is_ignore_also_in_used_memory() -> None:
    placement = Placement(source=(3, 2, 10, 6), target=(0, 0, 32, 32))
    out = np.full((12, 20), 7, np.uint8)
    plan = UpsampleArgmaxPlan((2, 4, 4), (12, 20), placement)
    plan(random_logits((2, 4, 4)), out)
    inside = np.zeros(out.shape, np.bool_)
    inside[2:8, 3:13] = True
    assert (out[~inside] == 255).all()
    assert (out[inside] < 2).all()


@pytest.mark.parametrize("classes", [1, 2, 255])
def test_class_counts(classes: int) -> None:
    logits = random_logits((classes, 5, 6), smooth=False)
    assert_labels(upsample_argmax(logits, (50, 61)), logits, whole(logits, (50, 61)))


def test_half_precision_is_read_as_it_is() -> None:
    logits = random_logits((21, 8, 8)).astype(np.float16)
    labels = upsample_argmax(logits, (90, 160))
    np.testing.assert_array_equal(labels, upsample_argmax(logits.astype(np.float32), (90, 160)))
    assert_labels(labels, logits, whole(logits, (90, 160)))


def test_logits_of_any_layout() -> None:
    logits = random_logits((5, 8, 8))
    want = upsample_argmax(logits, (64, 80))
    channels_last = np.ascontiguousarray(logits.transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_array_equal(upsample_argmax(channels_last, (64, 80)), want)
    logits.flags.writeable = False
    np.testing.assert_array_equal(upsample_argmax(logits, (64, 80)), want)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), shift=st.integers(-64, 64), frame=st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_properties(seed: int, shift: int, frame: tuple[int, int]) -> None:
    """A constant on every class changes nothing; permuted classes give permuted labels. Values of 1/16: sums are exact,
    and odd offsets of the classes keep ties apart."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-512, 512, (6, 5, 4)).astype(np.float32) / 16
    logits += np.arange(6, dtype=np.float32)[:, None, None] / 997
    labels = upsample_argmax(logits, frame)
    assert_labels(labels, logits, whole(logits, frame))
    assert (labels != upsample_argmax(logits + np.float32(shift), frame)).mean() <= 0.02  # ties but for rounding
    order = rng.permutation(6)
    np.testing.assert_array_equal(order[upsample_argmax(logits[order], frame)], labels)


def test_not_a_number_and_infinity_do_no_harm() -> None:
    logits = random_logits((4, 6, 6), smooth=False)
    logits[1, 2, 3], logits[2, 4, 4], logits[0, 0, 0] = np.nan, np.inf, -np.inf
    assert upsample_argmax(logits, (61, 67)).max() < 4


def test_calls_of_a_plan_allocate_nothing() -> None:
    logits = random_logits((21, 64, 64)).astype(np.float16)
    plan, out = UpsampleArgmaxPlan((21, 64, 64), (480, 640)), np.empty((480, 640), np.uint8)
    plan(logits, out)
    tracemalloc.start()
    try:
        for _ in range(5):
            plan(logits, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4096, "only Python's own call objects"


@pytest.mark.parametrize(
    ("logits", "out", "words"),
    [
        (np.zeros((2, 4, 4), np.float32), np.empty((9, 8), np.uint8), "expected C-contiguous uint8"),
        (np.zeros((2, 4, 4), np.float32), np.empty((8, 8), np.int64), "int64"),
        (np.zeros((2, 4, 4), np.float32), np.empty((8, 16), np.uint8)[:, ::2], "C-contiguous"),
        (np.zeros((3, 4, 4), np.float32), np.empty((8, 8), np.uint8), r"made for \(2, 4, 4\)"),
    ],
)
def test_wrong_arrays(logits: np.ndarray, out: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UpsampleArgmaxPlan((2, 4, 4), (8, 8))(logits, out)


def test_too_many_classes() -> None:
    with pytest.raises(ValueError, match="256 classes; expected 1 to 255"):
        upsample_argmax(np.zeros((256, 2, 2), np.float32), (8, 8))


@pytest.mark.parametrize("stride", [1, 2, 4, 16, 32])
@pytest.mark.parametrize("frame_hw", [(64, 96), (97, 161)])
def test_any_stride(stride: int, frame_hw: tuple[int, int]) -> None:
    """The grid follows from the placement's network input; PyTorch's interpolation is the other arithmetic."""
    torch = pytest.importorskip("torch")
    size_hw = (64, 96)
    logits = random_logits((5, size_hw[0] // stride, size_hw[1] // stride), seed=stride)
    labels = upsample_argmax(logits, frame_hw, Preprocess(size_hw=size_hw).place(frame_hw))
    full = torch.nn.functional.interpolate(torch.from_numpy(logits)[None].double(), frame_hw, mode="bilinear")[
        0
    ].numpy()
    chosen = np.take_along_axis(full, labels[None].astype(np.int64), 0)[0]
    assert (full.max(0) - chosen).max() <= 1e-5


def test_a_stride_that_is_not_whole() -> None:
    """A 520x520 input with a grid of 66x66, as some networks round it: the grid spans the whole input."""
    torch = pytest.importorskip("torch")
    logits = random_logits((3, 66, 66), seed=1)
    labels = upsample_argmax(logits, (260, 300), Preprocess(size_hw=(520, 520)).place((260, 300)))
    full = torch.nn.functional.interpolate(torch.from_numpy(logits)[None].double(), (260, 300), mode="bilinear")[
        0
    ].numpy()
    chosen = np.take_along_axis(full, labels[None].astype(np.int64), 0)[0]
    assert (full.max(0) - chosen).max() <= 1e-5


@pytest.mark.parametrize("stride", [1, 2, 4, 16])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_the_gpu_kernel_gets_every_stride_as_8(stride: int, fit: str) -> None:
    """What the kernel is told, at stride 8, gives the labels of the true placement."""
    from tsss_edge.kernels import at_stride_8

    size_hw, frame_hw = (64, 96), (71, 120)
    logits = random_logits((4, size_hw[0] // stride, size_hw[1] // stride), seed=stride)
    placement = Preprocess(size_hw=size_hw, fit=fit).place(frame_hw)  # type: ignore[arg-type]
    told = at_stride_8(placement, logits.shape[1:])
    assert told.input_hw is None
    same = upsample_argmax(logits, frame_hw, placement) == upsample_argmax(logits, frame_hw, told)
    assert same.mean() > 0.999  # float ties
