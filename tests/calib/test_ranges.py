"""Running a graph over pictures: the same magnitudes whatever the batches, order and workers; the table on disk."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock

import chain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tsss_edge.calib.ranges import CalibTable, Histograms, collect, make_table
from tsss_edge.errors import ArtifactError
from tsss_edge.files import write_json

TENSORS = ("x0", "x1", "x2")
Load = Callable[[], NDArray[np.uint8]]


def loads(pictures: list[NDArray[np.uint8]]) -> list[Load]:
    return [partial(np.copy, p) for p in pictures]


def collected(pictures: list[NDArray[np.uint8]], *, workers: int = 1, counted: bool = True) -> Histograms:
    return collect(chain.float_chain(), TENSORS, loads(pictures), workers=workers, counted=counted)


def same(a: Histograms, b: Histograms) -> bool:
    return all(a[t].peak == b[t].peak and np.array_equal(a[t].counts, b[t].counts) for t in TENSORS)


@pytest.fixture(scope="module")
def reference() -> Histograms:
    return collected(chain.pictures(6))


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(6)), batch=st.integers(1, 6), workers=st.integers(1, 3))
def test_batches_order_and_workers_do_not_matter(
    reference: Histograms, order: list[int], batch: int, workers: int
) -> None:
    pictures = [chain.pictures(6)[i] for i in order]
    batches = [np.concatenate(pictures[i : i + batch]) for i in range(0, 6, batch)]
    assert same(collected(batches, workers=workers), reference)


def test_magnitudes_of_the_picture_by_hand(reference: Histograms) -> None:
    values = np.concatenate(chain.pictures(6)) * np.float32(1 / 255)
    assert reference["x0"].peak == pytest.approx(values.max()) and reference["x0"].counts.sum() == values.size


def test_minmax_needs_no_counts() -> None:
    found = collected(chain.pictures(2), counted=False)
    assert found["x1"].peak > 0 and found["x1"].counts.sum() == 0


def test_no_more_pictures_alive_than_workers() -> None:
    """Memory does not grow with the number of pictures."""
    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    most, lock = [0], Lock()

    def load(seed: int) -> NDArray[np.uint8]:
        picture = np.random.default_rng(seed).integers(0, 256, (1, *chain.SIZE_HW, 3), dtype=np.uint8)
        with lock:
            alive.append(weakref.ref(picture))
            gc.collect()
            most[0] = max(most[0], sum(r() is not None for r in alive))
        return picture

    collect(chain.float_chain(), TENSORS, [partial(load, i) for i in range(24)], workers=2)
    assert len(alive) == 24 and most[0] <= 3  # two in work, and the one just made


def test_every_picture_is_ticked_once() -> None:
    ticks: list[int] = []
    collect(chain.float_chain(), TENSORS, loads(chain.pictures(5)), workers=2, tick=lambda: ticks.append(1))
    assert len(ticks) == 5


def test_an_error_of_a_picture_stops_all_and_is_raised() -> None:
    seen: list[int] = []

    def load(i: int) -> NDArray[np.uint8]:
        seen.append(i)
        if i == 2:
            raise ArtifactError("truncated")
        return chain.pictures(1)[0]

    with pytest.raises(ArtifactError, match="truncated"):
        collect(chain.float_chain(), TENSORS, [partial(load, i) for i in range(1000)], workers=2)
    assert len(seen) < 1000  # the other worker may go on for a moment


def test_nan_is_refused_with_the_tensor() -> None:
    model = chain.float_chain()
    bias = next(t for t in model.graph.initializer if t.name == "b0")
    bias.raw_data = np.full(8, np.nan, np.float32).tobytes()
    with pytest.raises(ArtifactError, match="tensor x1 becomes NaN"):
        collect(model, TENSORS, loads(chain.pictures(1)), workers=1)


def test_a_graph_that_does_not_load_is_refused() -> None:
    with pytest.raises(ArtifactError, match="ONNX Runtime refuses the graph"):
        collect(chain.float_chain(), ("no_such_tensor",), loads(chain.pictures(1)))


# ---------------------------------------------------------------------------------------------------------------------
# The table


def table() -> CalibTable:
    return CalibTable(
        method="mse", images=3, onnx_sha256="ab" * 32, preprocess="0123456789abcdef",
        ranges={"nchw": 255.0, "stem.relu": 3.25}, peaks={"nchw": 254.0, "stem.relu": 7.5},
    )  # fmt: skip


GOLDEN = b"""\
{
  "method": "mse",
  "images": 3,
  "onnx_sha256": "abababababababababababababababababababababababababababababababab",
  "preprocess": "0123456789abcdef",
  "ranges": {
    "nchw": 255.0,
    "stem.relu": 3.25
  },
  "peaks": {
    "nchw": 254.0,
    "stem.relu": 7.5
  },
  "others": {},
  "weight_bits": 8,
  "digest": ""
}
"""


def test_golden_bytes(tmp_path: Path) -> None:
    path = tmp_path / "t.ranges.json"
    write_json(path, table())
    assert path.read_bytes() == GOLDEN
    assert CalibTable.load(path) == table()


@pytest.mark.parametrize("value", ["0.0", "-1.0"])
def test_a_range_that_is_not_positive_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "t.ranges.json"
    path.write_bytes(GOLDEN.replace(b'"stem.relu": 3.25', b'"stem.relu": ' + value.encode()))
    with pytest.raises(ArtifactError, match=r"the range of stem\.relu is"):
        CalibTable.load(path)


@pytest.mark.parametrize(
    "content", [b"", GOLDEN[:80], GOLDEN.replace(b"mse", b"magic"), GOLDEN.replace(b"ranges", b"r")]
)
def test_a_damaged_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.ranges.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"t\.ranges\.json"):
        CalibTable.load(path)


def test_exact_ranges_are_not_measured(reference: Histograms) -> None:
    made = make_table(reference, "minmax", images=6, onnx_sha256="", preprocess="", exact={"x0": 1.0})
    assert made.ranges["x0"] == 1.0 and made.peaks["x0"] == reference["x0"].peak
    assert made.ranges["x1"] == reference["x1"].peak and list(made.ranges) == list(TENSORS)
