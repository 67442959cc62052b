"""choose_engine: the fastest that passes, INT8 only when it pays, nothing kept when nothing passes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import netkit
import pytest
from tiny import tiny_onnx

from tsss_edge.artifacts import Candidate, Checkpoint, Choice, Engine, ParityRecord
from tsss_edge.bench import Percentiles
from tsss_edge.config import load_target
from tsss_edge.deploy import choose
from tsss_edge.deploy.choose import choose_engine, pick
from tsss_edge.errors import ArtifactError, GateError
from tsss_edge.export import openvino_build
from tsss_edge.export.build import build_engine, build_summary, first_served
from tsss_edge.export.onnx_export import EngineSources

CPU = msgspec.structs.replace(load_target("cpu"), min_reference=0.0)  # networks here are random


def candidate(precision: str, p50_ms: float) -> Candidate:
    return Candidate(precision=precision, engine=f"t.{precision}.xml", p50_ms=p50_ms, passed=True)


@pytest.mark.parametrize(
    ("times", "chosen", "words"),
    [
        ({"int8": 5.0, "bf16": 8.0, "fp32": 20.0}, "int8", "1.60 times as fast as bf16"),
        ({"int8": 7.5, "bf16": 8.0}, "bf16", "INT8 is 1.07 times as fast as bf16, less than the 1.10"),
        ({"int8": 9.0, "fp32": 8.0}, "fp32", "INT8 is 0.89 times"),
        ({"bf16": 9.0, "fp32": 8.0}, "fp32", "fastest that passes"),
        ({"int8": 9.0}, "int8", "the only one"),
    ],
)
def test_pick(times: dict[str, float], chosen: str, words: str) -> None:
    best, why = pick([candidate(p, ms) for p, ms in times.items()], CPU)
    assert best is not None and best.precision == chosen
    assert words in why


def test_pick_of_nothing() -> None:
    assert pick([], CPU) == (None, "no engine passed the gate")


def arrange(monkeypatch: pytest.MonkeyPatch, folder: Path, *, ms: dict[str, float], drops: dict[str, float]) -> Path:
    """Real engines from hand-made graphs; times and mIoU drops as told."""
    model = tiny_onnx(folder / "tiny.onnx")
    monkeypatch.setattr(EngineSources, "_calibrate", lambda self, floating, out: tiny_onnx(out, precision="int8"))

    def timed(backends: Any, files: list[str], *, duration_s: float) -> list[SimpleNamespace]:
        p50 = [ms[file.split(".")[1]] for file in files]
        return [SimpleNamespace(latency_ms=Percentiles(p50=t, p95=t, p99=t), runs=3) for t in p50]

    def parity(engine: Engine, reference: Checkpoint, data: Path, **options: Any) -> SimpleNamespace:
        assert options["max_drop"] == CPU.max_drop and reference.meta.arch == "edge-s"
        drop = drops[engine.path.name.split(".")[1]]
        passed = drop <= options["max_drop"]
        problems = () if passed else (f"lost {drop}",)
        record = ParityRecord(
            passed=passed, miou_reference=70, miou_engine=70 - drop, miou_drop=drop, pixel_agreement=0.99,
            boundary_agreement=0.9, images=3, max_drop=CPU.max_drop, data_sha256="",
        )  # fmt: skip
        return SimpleNamespace(record=lambda: record, problems=problems, profile=None)

    monkeypatch.setattr(choose, "time_networks", timed)
    monkeypatch.setattr(choose, "check_parity", parity)
    return model.path


def run(model: Path, out: Path) -> Choice:
    reference = netkit.checkpoint(model.parent / "ckpt.pt")
    reference.path.unlink()  # it was loaded at the door
    engine = choose_engine(model, CPU, out, eval_data=Path("data"), reference=reference, calib_data=Path("data"))
    assert engine == Engine.load(engine.path) and engine.record.build.chosen is not None
    return engine.record.build.chosen


def test_the_chosen_engine_stays_and_the_others_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = {"int8": 5.0, "bf16": 8.0, "fp32": 20.0}
    model = arrange(monkeypatch, tmp_path, ms=times, drops={"int8": 0.2, "bf16": 0, "fp32": 0})
    choice = run(model, tmp_path / "out" / "t.engine")
    assert choice.engine == "t.int8.xml"
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"t.int8.xml", "t.int8.bin", "t.int8.json", "t.int8.onnx"}
    record = Engine.load(tmp_path / "out" / choice.engine).record
    assert record.latency is not None and record.latency.p50_ms == 5.0
    assert record.build.chosen == choice
    assert "drop +0.20" in choice.summary() and "INT8 passes the gate" in choice.summary()


def test_a_failed_gate_moves_on_to_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = {"int8": 5.0, "bf16": 8.0, "fp32": 20.0}
    model = arrange(monkeypatch, tmp_path, ms=times, drops={"int8": 3.0, "bf16": 9.0, "fp32": 0})
    choice = run(model, tmp_path / "t")
    assert choice.engine == "t.fp32.xml"
    assert [c.passed for c in choice.candidates if c.passed is not None].count(True) == 1
    assert "failed: lost 3.0" in choice.summary()


@pytest.mark.parametrize("saturates", [True, False])
def test_a_cpu_that_saturates_is_told_with_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saturates: bool
) -> None:
    monkeypatch.setattr(openvino_build, "int8_saturates", lambda: saturates)
    times = {"int8": 5.0, "bf16": 8.0, "fp32": 20.0}
    model = arrange(monkeypatch, tmp_path, ms=times, drops={"int8": 9, "bf16": 0, "fp32": 0})
    (int8,) = (c for c in run(model, tmp_path / "t.engine").candidates if c.precision == "int8")
    assert ("no VNNI" in int8.reason and "--weight-bits 7" in int8.reason) is saturates
    engine = build_engine(model, CPU, tmp_path / "one.engine", precision="int8", calib_data=Path("data"))
    assert ("--weight-bits 7" in build_summary(engine)) is saturates
    assert engine.record.meta.calibration is not None
    seven = msgspec.structs.replace(engine.record.meta.calibration, weight_bits=7)
    meta = msgspec.structs.replace(engine.record.meta, calibration=seven)
    assert openvino_build.saturation_note(msgspec.structs.replace(engine.record, meta=meta)) == ""


def test_a_refused_candidate_does_not_end_the_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = arrange(monkeypatch, tmp_path, ms={"bf16": 8.0, "fp32": 20.0}, drops={"bf16": 0, "fp32": 0})
    build = choose.build_in

    def refuse_int8(folder: Path, name: str, sources: EngineSources, precision: Any) -> Engine:
        if precision == "int8":
            raise ArtifactError("no convolution would run in INT8")
        return build(folder, name, sources, precision)

    monkeypatch.setattr(choose, "build_in", refuse_int8)
    choice = run(model, tmp_path / "t")
    assert choice.precision in ("bf16", "fp32")  # bf16 where the CPU has it
    assert "int8  no convolution would run in INT8" in choice.summary()


def test_when_all_are_refused_the_first_reason_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = arrange(monkeypatch, tmp_path, ms={}, drops={})

    def refuse(folder: Path, name: str, sources: EngineSources, precision: str) -> Engine:
        raise ArtifactError(f"{precision} refused")

    monkeypatch.setattr(choose, "build_in", refuse)
    with pytest.raises(ArtifactError, match="int8 refused; bf16 refused; fp32 refused"):
        run(model, tmp_path / "t")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.onnx"]


def test_nothing_passes_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = {"int8": 5.0, "bf16": 8.0, "fp32": 20.0}
    model = arrange(monkeypatch, tmp_path, ms=times, drops={"int8": 3.0, "bf16": 2.0, "fp32": 1.0})
    with pytest.raises(GateError, match=r"none is kept: .*int8: failed: lost 3\.0"):
        run(model, tmp_path / "t")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.onnx"]


def test_foreign_records_and_missing_reference_are_refused_before_any_work(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx")
    with pytest.raises(ValueError, match="needs --reference"):
        choose_engine(model.path, CPU, tmp_path / "t", eval_data=tmp_path)
    with pytest.raises(ArtifactError, match=r"best\.pt: no such checkpoint"):
        choose_engine(model.path, CPU, tmp_path / "t", eval_data=tmp_path, reference=tmp_path)
    (tmp_path / "t.fp32.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is not an engine record"):
        choose_engine(
            model.path, CPU, tmp_path / "t", eval_data=tmp_path, reference=netkit.checkpoint(tmp_path / "net.pt")
        )


def test_a_cpu_gets_fp32_where_a_target_names_fp16_before_it(tmp_path: Path) -> None:
    """FP16 is no faster than FP32 on a CPU: it is built where it is asked for by name, or wins the timing."""
    target = msgspec.structs.replace(CPU, precisions=("fp16", "fp32"))
    assert first_served(EngineSources(tiny_onnx(tmp_path / "tiny.onnx"), target)) == "fp32"
    assert "fp16" not in CPU.precisions
