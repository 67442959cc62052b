"""The engine inspector's JSON of several TensorRT versions -> convolutions by precision, and the refusal of FP32 ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import tensorrt_standin
from tiny import tiny_onnx

from tsss_edge.backends.trt_api import Trt
from tsss_edge.config import load_target
from tsss_edge.errors import ArtifactError
from tsss_edge.export import tensorrt_build, tensorrt_worker
from tsss_edge.export.build import build_engine
from tsss_edge.export.tensorrt_worker import BuildJob, BuildResult, realised_precisions


def layer(name: str, kind: str, weights: str = "", input_format: str = "", parameter: str = "Convolution") -> Any:
    content = {"Name": name, "LayerType": kind, "ParameterType": parameter, "Inputs": []}
    if weights:
        content["Weights"] = {"Type": weights, "Count": 864}
    if input_format:
        content["Inputs"] = [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": input_format}]
    return content


# Texts as TensorRT 8.5 (long formats), 10.9 (short ones) and engines with free shapes print them.
INT8 = layer("a + relu", "CaskConvolution", "Int8", "Thirty-two wide channel vectorized row major Int8 format.")
HALF = layer("b", "CaskConvolution", "Half", "Channel major FP16 format where channel % 8 == 0")
SHORT = layer("c", "CaskConvolution", input_format="Half")
FLOAT = layer("d", "CaskGemmConvolution", "Float", "Row major linear FP32 format")
FREE = layer("e", "CaskConvolution", "Int8", "N/A due to dynamic shapes")
REFORMAT = layer("f", "Reformat", input_format="Row major linear FP32", parameter="Reformat")
BF16 = layer("g", "CaskConvolution", "BFloat16")


def test_every_version_is_read() -> None:
    text = json.dumps({"Layers": [INT8, HALF, SHORT, FLOAT, FREE, REFORMAT, BF16], "Bindings": ["image"]})
    assert realised_precisions(text) == ({"bf16": 1, "fp16": 2, "fp32": 1, "int8": 2}, ("d",))


def test_names_only_and_nothing_tell_nothing() -> None:
    assert realised_precisions('{"Layers": ["a + relu", "b"]}') == ({}, ())
    assert realised_precisions("") == ({}, ())


@pytest.mark.parametrize(("refused", "after"), [((b"old",), b"anew"), ((b"old", b""), b"old")])
def test_a_timing_cache_that_tensorrt_refuses_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[bytes, ...], after: bytes
) -> None:
    class Config(tensorrt_standin.IBuilderConfig):
        def create_timing_cache(self, data: bytes) -> Any:
            return SimpleNamespace(data=data, serialize=lambda: b"anew")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self._cache = None if cache.data in refused else cache
            return self._cache is not None

    trt = Trt(tensorrt_standin, "tensorrt", (10, 3, 0))
    monkeypatch.setattr(tensorrt_standin, "IBuilderConfig", Config)
    monkeypatch.setattr(tensorrt_worker, "load", lambda flavour: trt)
    model, cache = tiny_onnx(tmp_path / "t.onnx"), tmp_path / "timing.cache"
    cache.write_bytes(b"old")
    target = msgspec.structs.replace(load_target("rtx"), compute_capabilities=())
    job = tensorrt_build.plan_job(trt, None, model, target, "fp32", tmp_path, "t.engine")
    job = msgspec.structs.replace(job, onnx=str(model.path), timing_cache=str(cache))
    assert tensorrt_worker.build(job).error == "" and Path(job.plan).is_file()
    assert cache.read_bytes() == after


def worker_that_found(monkeypatch: pytest.MonkeyPatch, realised: dict[str, int], left: tuple[str, ...]) -> None:
    """The real builder, and an inspector that says so (it needs a GPU)."""
    real = tensorrt_build.run_worker

    def run(job: BuildJob) -> BuildResult:
        return msgspec.structs.replace(real(job), realised=realised, realised_float=left)

    monkeypatch.setattr(tensorrt_build, "run_worker", run)


def test_an_engine_that_kept_fp32_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tiny_onnx(tmp_path / "t.onnx", precision="fp16")
    worker_that_found(monkeypatch, {"fp16": 1, "fp32": 1}, ("logits + relu",))
    with pytest.raises(ArtifactError, match=r"1 convolutions would run in FP32 in an fp16 engine \(logits \+ relu"):
        build_engine(model.path, load_target("rtx"), tmp_path / "t")
    assert [p.name for p in tmp_path.iterdir()] == ["t.onnx"]


def test_what_runs_is_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tiny_onnx(tmp_path / "t.onnx", precision="int8")
    worker_that_found(monkeypatch, {"int8": 1}, ())
    assert build_engine(model.path, load_target("rtx"), tmp_path / "t").record.realised == {"int8": 1}


def test_the_worker_asks_the_inspector_of_the_plan_it_built() -> None:
    inspector = SimpleNamespace(get_engine_information=lambda kind: f"asked for {kind}")
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    plans: list[bytes] = []

    def deserialize(plan: bytes) -> Any:
        plans.append(plan)
        return engine if plan == b"plan" else None

    module = SimpleNamespace(Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize))
    trt = SimpleNamespace(module=module, get=lambda name: name)
    job = SimpleNamespace(dla_core=None, version_compatible=False)
    assert tensorrt_worker._inspect(trt, None, b"plan", job) == "asked for LayerInformationFormat.JSON"
    assert tensorrt_worker._inspect(trt, None, b"for another GPU", job) == ""
    assert plans == [b"plan", b"for another GPU"]
