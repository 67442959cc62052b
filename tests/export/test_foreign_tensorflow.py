"""Networks of TensorFlow, made once by scripts/foreign_tensorflow.py: what is imported says what TensorFlow said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tsss_edge.artifacts import Classes
from tsss_edge.backends import open_backend
from tsss_edge.export.foreign import import_onnx

SAMPLES = Path(__file__).with_name("samples")


@pytest.mark.parametrize(("file", "answer", "count"), [("tf-saved-model", "saved_model", 11), ("tflite", "tflite", 2)])
def test_equals_tensorflow(tmp_path: Path, file: str, answer: str, count: int) -> None:
    kept = np.load(SAMPLES / "answers.npz")
    classes = Classes(names=tuple(f"c{i}" for i in range(count)), background=False)
    report = import_onnx(SAMPLES / f"{file}.onnx", tmp_path / "net.onnx", classes=classes)
    assert f"{count} classes, NHWC, 16x24" in " ".join(report.found) and report.head == "logits"
    want = kept[answer][0].transpose(2, 0, 1)
    with open_backend(tmp_path / "net.onnx", threads=1) as backend:
        got = backend.infer(kept["image"][None])["logits"][0]
    np.testing.assert_allclose(got, want, atol=1e-4)  # the SavedModel's Softmax stays: a Transpose follows it
    assert len(np.unique(want.argmax(0))) > 1
    assert (got.argmax(0) == want.argmax(0)).mean() > 0.99
