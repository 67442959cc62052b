"""ONNX Runtime, OpenVINO and PyTorch back ends against the fake one, which knows the answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny import CLASSES, PREPROCESS, pictures, tiny_onnx

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Engine
from tsss_edge.backends import AsyncBackend, Backend, open_backend
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.backends.ov import OpenVinoBackend, compile_options
from tsss_edge.config import load_target
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.build import build_engine
from tsss_edge.machine import cpu_flags
from tsss_edge.models import build_model


def has_int8_products() -> bool:
    """Whether this CPU adds products of INT8 in 32 bits. AVX2 alone adds two of them in 16, which saturate at full range."""
    return bool(cpu_flags(("avx_vnni", "avx512_vnni", "amx_int8", "asimddp")))


def build(folder: Path, precision: str = "fp32", **graph: object) -> Path:
    model = tiny_onnx(folder / "tiny.onnx", precision=precision, **graph)
    return build_engine(model.path, load_target("cpu"), folder / "tiny.xml").path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_onnx(tmp_path_factory.mktemp("engine") / "tiny.onnx", head="both", objectness=True)
    return build_engine(model.path, load_target("cpu"), model.path.with_suffix(".xml"), precision="fp32").path


OVERLAPPING = """
import os, signal, sys
from pathlib import Path
from tsss_edge.backends import open_backend
signal.signal(signal.SIGINT, signal.default_int_handler)
first, second = (open_backend(Path(sys.argv[1])) for _ in range(2))
first.close()
second.close()
del first, second
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""


def test_ctrl_c_is_heard_after_two_engines_that_overlapped_are_gone(engine: Path) -> None:
    """As a stream has them that takes a new engine. OpenVINO's plugins left the process without a stack for signals."""
    command = [sys.executable, "-c", OVERLAPPING, str(engine)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "heard\n"), ended.stderr


def expected_classes(images: np.ndarray) -> np.ndarray:
    return FakeBackend(CLASSES, PREPROCESS).infer(images)["logits"].argmax(1)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnxruntime_answers_as_the_fake(tmp_path: Path, precision: str) -> None:
    model = tiny_onnx(tmp_path / "t.onnx", precision=precision, head="both", objectness=True)
    with open_backend(model.path, threads=1) as backend:
        out = backend.infer(pictures())
    assert (out["logits"].argmax(1) == expected_classes(pictures())).all()
    assert out["labels"].dtype == np.uint8 and out["labels"].shape == (1, 64, 96)
    # objectness = mean - 0.25 by construction; INT8 pixels are off by at most half a step of 1/127
    mean = pictures()[:, ::8, ::8, 0] / 255
    np.testing.assert_allclose(out["objectness"][:, 0], mean - 0.25, rtol=0, atol=1e-6 if precision == "fp32" else 8e-3)


def test_openvino_answers_as_the_fake_and_as_its_record_says(engine: Path) -> None:
    with open_backend(engine, threads=1) as backend:
        assert isinstance(backend, Backend) and isinstance(backend, AsyncBackend)
        out = backend.infer(pictures())
        assert {s.name: s.shape for s in backend.outputs} == {n: a.shape for n, a in out.items()}
        assert {s.name: s.dtype for s in backend.outputs} == {n: a.dtype.name for n, a in out.items()}
    assert (out["logits"].argmax(1) == expected_classes(pictures())).all()


@pytest.mark.skipif(not has_int8_products(), reason="without VNNI, INT8 products of this CPU saturate at 16 bits")
def test_openvino_int8_answers_as_the_fake(tmp_path: Path) -> None:
    with open_backend(build(tmp_path, "int8"), threads=1) as backend:
        assert (backend.infer(pictures())["logits"].argmax(1) == expected_classes(pictures())).all()


def test_openvino_slots_do_not_mix(engine: Path) -> None:
    images = [pictures(seed=s) for s in range(3)]
    with OpenVinoBackend(Engine.load(engine), threads=1, slots=3) as backend:
        for _ in range(3):
            for slot in range(3):
                backend.start(slot, images[slot])
            for slot in (2, 0, 1):
                assert (backend.wait(slot)["logits"].argmax(1) == expected_classes(images[slot])).all()


def test_openvino_reads_the_callers_memory_and_reuses_its_outputs(engine: Path) -> None:
    image = pictures(seed=1)
    with OpenVinoBackend(Engine.load(engine), threads=1) as backend:
        first = backend.infer(image)["logits"]
        image[...] = pictures(seed=2)  # same memory, other picture: no rebinding happens, and none is needed
        second = backend.infer(image)["logits"]
    assert first is second
    assert (second.argmax(1) == expected_classes(pictures(seed=2))).all()


def test_openvino_takes_a_view_that_is_not_contiguous(engine: Path) -> None:
    wide = np.zeros((1, 64, 192, 3), np.uint8)
    wide[:, :, ::2] = pictures()
    with OpenVinoBackend(Engine.load(engine), threads=1) as backend:
        assert (backend.infer(wide[:, :, ::2])["logits"].argmax(1) == expected_classes(pictures())).all()


def test_openvino_free_batch(tmp_path: Path) -> None:
    target = msgspec.structs.replace(load_target("cpu"), batch=(1, 2, 4))
    model = tiny_onnx(tmp_path / "t.onnx", batch=0)
    path = build_engine(model.path, target, tmp_path / "t.xml", precision="fp32").path
    with open_backend(path, threads=1) as backend:
        for n in (1, 4, 2):
            assert (backend.infer(pictures(n))["logits"].argmax(1) == expected_classes(pictures(n))).all()


def test_fixed_batch_and_size_are_enforced(engine: Path) -> None:
    with open_backend(engine, threads=1) as backend:
        with pytest.raises(ValueError, match="batches of 1, got 2"):
            backend.infer(pictures(2))
        with pytest.raises(ValueError, match=r"expected \(N,64,96,3\) uint8"):
            backend.infer(pictures()[:, :32])


def test_unknown_openvino_device(engine: Path) -> None:
    with pytest.raises(UnavailableError, match="no OpenVINO device 'NPU' on this machine; it has CPU"):
        OpenVinoBackend(Engine.load(engine), device="NPU")


def test_close_twice(engine: Path) -> None:
    backend = OpenVinoBackend(Engine.load(engine), threads=1)
    backend.close()
    backend.close()


def test_compile_options_are_chosen_on_purpose() -> None:
    one = compile_options("fp32", slots=1, threads=2)
    assert one == {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "f32"}
    assert compile_options("int8", slots=3, threads=2) == {"NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": 2}
    assert compile_options("int8", slots=5, threads=16) == {"NUM_STREAMS": 4, "INFERENCE_NUM_THREADS": 16}


def test_wrong_files_are_one_clear_line(tmp_path: Path, engine: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not onnx")
    with pytest.raises(ArtifactError, match=r"not a readable ONNX|not exported by"):
        open_backend(tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match="expected a checkpoint"):
        open_backend(tmp_path / "a.txt")
    other = tiny_onnx(tmp_path / "other.onnx", size_hw=(32, 32))
    with pytest.raises(ArtifactError, match=r"its input is uint8 \(1, 32, 32, 3\)"):
        open_backend(other.path)


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
@pytest.mark.parametrize("trust", [False, True])
def test_truncated_engine(tmp_path: Path, suffix: str, trust: bool) -> None:
    path = build(tmp_path)
    file = path.with_suffix(suffix)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ArtifactError, match="OpenVINO cannot read it" if trust else "its hash is not the one"):
        open_backend(path, trust=trust)


def test_changed_engine_loads_only_with_trust(tmp_path: Path) -> None:
    path = build(tmp_path)
    path.write_text(path.read_text().replace("</net>", "</net>\n"))
    with pytest.raises(ArtifactError, match="--trust"):
        open_backend(path)
    with open_backend(path, trust=True, threads=1) as backend:
        assert (backend.infer(pictures())["logits"].argmax(1) == expected_classes(pictures())).all()


def checkpoint(folder: Path, stage: str = "supervised") -> Checkpoint:
    net = build_model("edge-s", num_classes=0 if stage == "lnet" else len(CLASSES))
    meta = CheckpointMeta(stage=stage, arch="edge-s", classes=CLASSES, preprocess=PREPROCESS)
    return Checkpoint.save(folder / "best.pt", meta, net.state_dict())


def test_pytorch_backend_is_the_network_on_scaled_pixels(tmp_path: Path) -> None:
    import torch

    from tsss_edge.models import load_model

    saved = checkpoint(tmp_path)
    with open_backend(tmp_path) as backend:
        out = backend.infer(pictures())
        assert isinstance(backend, Backend)
        assert [(s.name, s.shape[1:]) for s in backend.outputs] == [(n, a.shape[1:]) for n, a in out.items()]
    x = torch.from_numpy(pictures()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        want = load_model(saved)(x)
    # channels_last sums in another order; logits are of order 1
    np.testing.assert_allclose(out["logits"], want.logits.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(out["objectness"], want.objectness.numpy(), rtol=0, atol=1e-4)


def test_pytorch_lnet_has_objectness_only_and_classifier_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "l", "lnet")
    with open_backend(tmp_path / "l") as backend:
        assert list(backend.infer(pictures())) == ["objectness"]
    checkpoint(tmp_path / "c", "classifier")
    with pytest.raises(ArtifactError, match="a classifier gives no masks"):
        open_backend(tmp_path / "c")
