"""Engines that take only batches: a single picture fills one, a stream refuses them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny import CLASSES, PREPROCESS, tiny_onnx

from tsss_edge.backends import open_backend
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.bench import time_networks
from tsss_edge.bench.timing import network_call, time_end_to_end
from tsss_edge.config import load_target
from tsss_edge.deploy.triton import write_repository
from tsss_edge.errors import ArtifactError
from tsss_edge.export.build import build_engine
from tsss_edge.onnxgraph.sessions import run_tensors
from tsss_edge.segment import run_network
from tsss_edge.stream.opening import open_engine

FOUR = msgspec.structs.replace(load_target("cpu"), batch=(4, 4, 4))


@pytest.fixture(params=["onnx", "xml"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    model = tiny_onnx(tmp_path / "tiny.onnx", batch=4).path
    return model if request.param == "onnx" else build_engine(model, FOUR, tmp_path / "tiny", precision="fp32").path


def test_one_picture_fills_a_fixed_batch(path: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    with open_backend(path) as four, open_backend(tiny_onnx(tmp_path / "one.onnx").path) as one:
        assert (four.min_batch, one.min_batch) == (4, 1)
        got, want = run_network(four, image)["logits"], run_network(one, image)["logits"]
        assert got.shape[0] == 4
        assert np.allclose(got, want, atol=1e-4)


def test_a_free_batch_has_the_limits_that_the_engine_was_built_for(tmp_path: Path) -> None:
    some = msgspec.structs.replace(load_target("cpu"), batch=(2, 4, 8))
    engine = build_engine(tiny_onnx(tmp_path / "free.onnx", batch=0).path, some, tmp_path / "free", precision="fp32")
    image = np.zeros((64, 96, 3), np.uint8)
    with open_backend(engine.path) as backend:
        assert backend.min_batch == 2
        assert run_network(backend, image)["logits"].shape[0] == 2  # one picture fills it
        for count in (1, 9):
            with pytest.raises(ValueError, match=f"takes batches of 2 to 8, got {count}"):
                backend.infer(np.zeros((count, 64, 96, 3), np.uint8))
    with pytest.raises(ArtifactError, match="takes 2 pictures at a time and a stream has one"):
        open_engine(engine.path, live=False, threads=1)
    with pytest.raises(ArtifactError, match="takes 2 pictures at least, and a client may send one"):
        write_repository(engine.path, tmp_path / "repository")


def test_a_fixed_batch_has_no_ensemble(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="takes 4 pictures at a time, and the ensemble's first step makes one"):
        write_repository(path, tmp_path / "repository", ensemble=True)
    assert not list((tmp_path / "repository").iterdir())


def test_a_batch_can_be_timed(path: Path) -> None:
    with open_backend(path) as four:
        network_call(four)()
        assert time_end_to_end(four, np.zeros((48, 64, 3), np.uint8), duration_s=0.01).runs > 0


def test_times_are_a_call_and_rates_and_ratios_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    single, batched = (FakeBackend(CLASSES, PREPROCESS) for _ in range(2))
    batched.min_batch = 4
    monkeypatch.setattr("tsss_edge.bench.warm_up", lambda call: call())
    monkeypatch.setattr("tsss_edge.bench.alternate", lambda calls, duration_s: [[9.0, 10.0, 11.0], [20.0, 20.0, 20.0]])
    one, four = time_networks([single, batched], ["a", "b"], duration_s=1)
    assert (one.latency_ms.p50, one.throughput_fps, one.ratio) == (10, pytest.approx(100), 1)
    assert (four.latency_ms.p50, four.throughput_fps, four.ratio) == (20, pytest.approx(200), 0.5)
    assert (four.best_ms, four.ratio_best) == (20, pytest.approx(5 / 9))


def test_a_graph_of_a_fixed_batch_is_compared_picture_by_picture(tmp_path: Path) -> None:
    run = run_tensors(tiny_onnx(tmp_path / "t.onnx", batch=4).graph, ["logits"])
    logits = run(np.zeros((1, 64, 96, 3), np.uint8))["logits"]
    assert logits.shape == (1, 4, 8, 12)


def test_a_stream_says_what_it_needs(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "tiny.onnx", batch=4).path
    engine = build_engine(model, FOUR, tmp_path / "tiny", precision="fp32").path
    with pytest.raises(ArtifactError, match="takes 4 pictures at a time and a stream has one"):
        open_engine(engine, live=False, threads=1)
