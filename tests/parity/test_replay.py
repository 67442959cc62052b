"""Calibration on another input than the network's own is proven by its own pictures."""

from __future__ import annotations

from pathlib import Path

import chain
import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from tsss_edge.artifacts import CalibrationRecord, Preprocess
from tsss_edge.data.voc import VocDataset
from tsss_edge.files import sha256_file
from tsss_edge.parity.int8_checks import Replay, calibration_pictures, replay_calibration

SPEC = Preprocess(size_hw=chain.SIZE_HW)


def red_pictures(count: int = 20, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Bright red, dark green and blue."""
    rng = np.random.default_rng(seed)
    low, high = np.array([150, 0, 0]), np.array([256, 90, 40])
    return [rng.integers(low, high, (*chain.SIZE_HW, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def dataset(tmp_path: Path) -> VocDataset:
    root = tmp_path / "data"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for i, picture in enumerate(red_pictures()):
        Image.fromarray(picture).save(root / f"JPEGImages/p{i}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"p{i}\n" for i in range(20)))
    return VocDataset.open(root)


@pytest.fixture
def record(dataset: VocDataset) -> CalibrationRecord:
    hashes = tuple(sha256_file(dataset.image_path(f"p{i}")) for i in range(0, 20, 2))
    return CalibrationRecord(
        method="minmax", images=10, image_list_sha256="", image_sha256=hashes, split="train", seed=0, onnx_sha256=""
    )


def ranges_on(pictures: list[NDArray[np.uint8]]) -> list[float]:
    model = chain.float_chain()
    names = ["x0", "x1", "x2"]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(names, {"image": np.ascontiguousarray(p)[None]}) for p in pictures]
    return [max(float(np.abs(run[i]).max()) for run in runs) for i in range(3)]


def replay(ranges: list[float], record: CalibrationRecord, dataset: VocDataset, limit: int = 16) -> Replay | None:
    return replay_calibration(chain.float_chain(), chain.int8_chain(ranges), record, dataset, SPEC, limit=limit)


def test_true_calibration_is_confirmed(tmp_path: Path, record: CalibrationRecord, dataset: VocDataset) -> None:
    result = replay(ranges_on(red_pictures()[::2]), record, dataset)
    assert result is not None and result.images == 10
    assert abs(result.excess) < 1e-4 and result.fault == ""


def test_swapped_channels_are_proven(tmp_path: Path, record: CalibrationRecord, dataset: VocDataset) -> None:
    swapped = ranges_on([p[..., ::-1] for p in red_pictures()[::2]])
    result = replay(swapped, record, dataset)
    assert result is not None and result.complete
    assert "not measured on the network's own input" in result.fault


def test_ranges_that_are_too_large_are_proven_by_the_whole_set_only(
    tmp_path: Path, record: CalibrationRecord, dataset: VocDataset
) -> None:
    large = [2 * r for r in ranges_on(red_pictures()[::2])]
    whole, part = (replay(large, record, dataset, limit=n) for n in (10, 9))
    assert whole is not None and whole.unreached == 1.0 and "100% of the tensors stay below their range" in whole.fault
    assert part is not None and not part.complete and part.fault == ""


def test_other_scaling_is_proven(tmp_path: Path, record: CalibrationRecord, dataset: VocDataset) -> None:
    result = replay(ranges_on([(p * 0.8).astype(np.uint8) for p in red_pictures()[::2]]), record, dataset)
    assert result is not None and "exceeds its recorded peak by 2" in result.fault


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_recorded_peaks_prove_it_for_methods_that_clip(
    tmp_path: Path, record: CalibrationRecord, dataset: VocDataset, method: str
) -> None:
    """The scales say nothing then: the same clipped ones stand in both graphs. One tensor short of its peak is enough."""
    pictures = red_pictures()[::2]
    for seen, found in ((pictures, False), ([p[..., ::-1] for p in pictures], True)):
        peaks = dict(zip(("x0", "x1", "x2"), ranges_on(seen), strict=True))
        told = msgspec.structs.replace(record, method=method, peaks=peaks)
        result = replay([0.3] * 3, told, dataset)
        assert result is not None and bool(result.fault) == found
    true = ranges_on(pictures)
    short = msgspec.structs.replace(record, method=method, peaks={"x0": true[0], "x1": 1.05 * true[1]})
    result = replay([0.3] * 3, short, dataset)
    assert result is not None and "x1 stays 5% below its recorded peak" in result.fault
    assert (part := replay([0.3] * 3, short, dataset, limit=9)) is not None and part.fault == ""


@pytest.mark.parametrize("change", [{"method": "entropy"}, {"random": True}, {"split": "other"}, {"image_sha256": ()}])
def test_where_it_proves_nothing_it_says_nothing(
    tmp_path: Path, record: CalibrationRecord, dataset: VocDataset, change: dict[str, object]
) -> None:
    assert replay([1e-3] * 3, msgspec.structs.replace(record, **change), dataset) is None


def test_only_recorded_pictures_are_run(record: CalibrationRecord, dataset: VocDataset) -> None:
    assert [p.stem for p in calibration_pictures(record, dataset, limit=3)] == ["p0", "p2", "p4"]
