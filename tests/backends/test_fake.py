"""The fake back end: known answers, buffers that are reused, slots that run side by side."""

from __future__ import annotations

import numpy as np
import pytest

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.backends import AsyncBackend, Backend
from tsss_edge.backends.fake import FakeBackend, brightness_cells

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
PREPROCESS = Preprocess(size_hw=(32, 64))


def two_tone() -> np.ndarray:
    """(1,32,64,3): left half 0 (class 0), right half 200 (200 * 4 / 256 -> class 3)."""
    image = np.zeros((1, 32, 64, 3), np.uint8)
    image[:, :, 32:] = 200
    return image


def test_it_is_a_backend() -> None:
    backend = FakeBackend(CLASSES, PREPROCESS)
    assert isinstance(backend, Backend)
    assert isinstance(backend, AsyncBackend)


def test_brightness_gives_the_class() -> None:
    cells = brightness_cells(two_tone(), 4)
    assert cells.shape == (1, 4, 8)
    assert cells[0, 0].tolist() == [0, 0, 0, 0, 3, 3, 3, 3]


def test_all_heads_agree_with_each_other_and_with_their_specs() -> None:
    backend = FakeBackend(CLASSES, PREPROCESS, head="both", objectness=True)
    out = backend.infer(two_tone())
    assert [(s.name, s.dtype, s.shape) for s in backend.outputs] == [
        ("logits", "float32", (-1, 4, 4, 8)),
        ("labels", "uint8", (-1, 32, 64)),
        ("objectness", "float32", (-1, 1, 4, 8)),
    ]
    for spec in backend.outputs:
        assert out[spec.name].shape == (1, *spec.shape[1:])
        assert out[spec.name].dtype == spec.dtype
    assert (out["logits"].argmax(1)[0] == out["labels"][0, ::8, ::8]).all()
    assert ((out["objectness"][:, 0] > 0) == (out["logits"].argmax(1) > 0)).all()


def test_next_call_overwrites_the_outputs() -> None:
    backend = FakeBackend(CLASSES, PREPROCESS)
    first = backend.infer(two_tone())["logits"]
    backend.infer(np.zeros((1, 32, 64, 3), np.uint8))
    assert first.argmax(1).max() == 0


class Clock:
    """Stands in for the `time` module: sleeping moves the hands."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_slots_keep_their_own_outputs_and_overlap_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("tsss_edge.backends.fake.time", clock)
    backend = FakeBackend(CLASSES, PREPROCESS, slots=2, latency_ms=60)
    backend.start(0, two_tone())
    backend.start(1, np.zeros((1, 32, 64, 3), np.uint8))
    assert clock.now == 100.0, "start must not wait"
    assert backend.wait(1)["logits"].argmax(1).max() == 0
    assert backend.wait(0)["logits"].argmax(1).max() == 3
    assert clock.now == pytest.approx(100.06), "the second slot's 60 ms ran beside the first's"


def test_wrong_input_and_planned_failure() -> None:
    backend = FakeBackend(CLASSES, PREPROCESS, fail_at=1)
    with pytest.raises(ValueError, match=r"expected \(N,32,64,3\) uint8"):
        backend.infer(np.zeros((1, 64, 32, 3), np.uint8))
    backend.infer(two_tone())
    with pytest.raises(RuntimeError, match="fake failure at call 1"):
        backend.infer(two_tone())
