"""Example 06 against a real Triton server on loopback."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_onnx
from tritonkit import serving
from typedlines import program

from tsss_edge.backends import open_backend
from tsss_edge.config import load_target
from tsss_edge.data.pictures import read_image
from tsss_edge.deploy.triton import write_repository
from tsss_edge.export.build import build_engine
from tsss_edge.segment import segment_image

pytest.importorskip("tritonclient.grpc")
pytestmark = pytest.mark.slow_all


def test_masks_come_back_and_a_bad_picture_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = build_engine(tiny_onnx(tmp_path / "net.onnx").path, load_target("cpu"), tmp_path / "net", precision="fp32")
    write_repository(engine.path, tmp_path / "models", name="net", python=True, ensemble=True)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (50 + number, 70, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.jpg")
    (photos / "torn.jpg").write_bytes(b"no picture")
    with serving(tmp_path / "models", tmp_path / "log.txt") as server:
        monkeypatch.setattr(sys, "argv", ["client.py", server.grpc, "net", str(photos), str(tmp_path / "masks")])
        with pytest.raises(SystemExit) as ended:
            program("06_triton_client/client.py").main()
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert told.out.startswith("3 masks in") and "torn.jpg: " in told.err
    with open_backend(engine) as local:
        for number in range(3):
            photo, mask = (read_image(path) for path in (photos / f"{number}.jpg", tmp_path / f"masks/{number}.png"))
            assert np.array_equal(mask[..., 0], segment_image(local, photo))
