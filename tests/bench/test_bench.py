"""Benchmarks of fake back ends whose latency is known; nothing here depends on how fast the machine is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_meta, written_engine

import tsss_edge.bench
from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Engine, Preprocess
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.bench import BenchReport, app_command, bench_engine, parse_app
from tsss_edge.bench.conditions import Machine, examine_machine, notes_on
from tsss_edge.bench.timing import alternate, time_end_to_end
from tsss_edge.errors import ArtifactError
from tsss_edge.metrics import percentiles

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
SPEC = Preprocess(size_hw=(64, 96))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeBackend]:
    """`open_backend` gives fakes: 20 ms for a file that has `slow` in its name, 2 ms otherwise."""
    opened: dict[str, FakeBackend] = {}

    def load_fake(path: Path, *, trust: bool = False) -> object:
        return Engine.load(path, trust=trust) if path.suffix == ".xml" else SimpleNamespace(path=path)

    def open_fake(model: Any, **_: object) -> FakeBackend:
        path = model.path
        backend = FakeBackend(CLASSES, SPEC, latency_ms=20 if "slow" in path.name else 2)
        backend.name = f"fake {path.stem}"
        opened[path.name] = backend
        return backend

    monkeypatch.setattr(tsss_edge.bench, "load_artifact", load_fake)
    monkeypatch.setattr(tsss_edge.bench, "open_backend", open_fake)
    return opened


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    path = tmp_path / "frame.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)).save(path)
    return path


def test_report_has_the_keys_of_the_contract(fakes: dict[str, FakeBackend], frame: Path) -> None:
    report = bench_engine(Path("net.onnx"), duration_s=0.1, image=frame)
    content = msgspec.json.decode(msgspec.json.encode(report))
    assert set(content["latency_ms"]) == {"p50", "p95", "p99"} == set(content["end_to_end"]["latency_ms"])
    assert content["throughput_fps"] > 0
    assert msgspec.json.decode(msgspec.json.encode(report), type=BenchReport) == report
    assert all(backend.closed for backend in fakes.values())


def test_latency_is_at_least_the_networks(fakes: dict[str, FakeBackend], frame: Path) -> None:
    report = bench_engine(Path("slow.onnx"), duration_s=0.2, image=frame)
    assert report.latency_ms.p50 >= 20
    assert report.throughput_fps <= 50
    assert report.end_to_end is not None
    assert report.end_to_end.stages_ms["network"] >= 20
    assert report.end_to_end.limited_by == "network"
    assert report.end_to_end.frame_hw == (48, 80)
    assert set(report.end_to_end.stages_ms) == {"preprocess", "network", "upsample_argmax", "overlay"}
    assert report.end_to_end.latency_ms.p50 >= sum(report.end_to_end.stages_ms.values()) * 0.5
    assert "limited by network" in report.summary()


def test_comparison_gives_ratios_by_name(fakes: dict[str, FakeBackend]) -> None:
    report = bench_engine(
        Path("quick.onnx"), duration_s=0.2, compare=[Path("slow.onnx"), Path("other.pt")], end_to_end=False
    )
    assert report.end_to_end is None
    assert set(report.compare) == {"fake slow", "fake other"}
    slow = report.compare["fake slow"]
    assert slow.latency_ms.p50 >= 20 and slow.ratio == pytest.approx(slow.latency_ms.p50 / report.latency_ms.p50)
    assert "fake slow" in report.summary()


def test_a_checkpoint_is_compared_on_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's table names the CPU, on a host with a GPU too; engines and ONNX files have devices of their own."""
    meta = CheckpointMeta(stage="pnet", arch="edge-s", classes=CLASSES, preprocess=SPEC)
    models = {
        "net.onnx": SimpleNamespace(path=Path("net.onnx")),
        "other.onnx": SimpleNamespace(path=Path("other.onnx")),
        "run": Checkpoint(path=Path("run"), sha256="", meta=meta),
    }
    devices: dict[str, str | None] = {}

    def open_fake(model: Any, *, device: str | None = None, threads: int | None = None) -> FakeBackend:
        devices[model.path.name] = device
        return FakeBackend(CLASSES, SPEC)

    monkeypatch.setattr(tsss_edge.bench, "load_artifact", lambda path, trust=False: models[path.name])
    monkeypatch.setattr(tsss_edge.bench, "open_backend", open_fake)
    others = (Path("other.onnx"), Path("run"))
    bench_engine(Path("net.onnx"), duration_s=0.01, compare=others, compare_device="cpu", end_to_end=False)
    assert devices == {"net.onnx": None, "other.onnx": None, "run": "cpu"}


def test_bad_duration_and_missing_engine(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        bench_engine(Path("x.engine"), duration_s=0)
    with pytest.raises(ArtifactError, match="no such engine"):
        bench_engine(tmp_path / "none.xml", end_to_end=False, duration_s=0.1)


def test_rounds_alternate_and_every_call_runs_in_each() -> None:
    order: list[str] = []
    times = alternate([lambda: order.append("a"), lambda: order.append("b")], duration_s=0.0, rounds=3)
    assert order == ["a", "b"] * 3
    assert [len(t) for t in times] == [3, 3]
    assert min(min(t) for t in times) >= 0


def test_percentiles_by_hand() -> None:
    p = percentiles([float(v) for v in range(101)])
    assert (p.p50, p.p95, p.p99) == (50.0, 95.0, 99.0)
    assert percentiles([3.0]).p99 == 3.0


def test_end_to_end_leaves_the_frame_alone() -> None:
    image = np.random.default_rng(1).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    before = image.copy()
    result = time_end_to_end(FakeBackend(CLASSES, SPEC), image, duration_s=0.05)
    np.testing.assert_array_equal(image, before)
    assert result.runs >= 1


# ---------------------------------------------------------------------------------------------------------------------
# The machine, and the other tool


def machine(**changes: object) -> Machine:
    steady = Machine(
        cpu="x", cores=4, threads=None, governor="performance", mhz_before=3000.0, mhz_after=3010.0, load_before=0.1
    )
    return msgspec.structs.replace(steady, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load_before": 9.0}, "load average 9.0 on 4 cores"),
        ({"governor": "powersave"}, "governor is powersave"),
        ({"mhz_after": 2000.0}, "drifted from 3000 to 2000 MHz"),
    ],
)
def test_what_spoils_a_measurement_is_noted(changes: dict[str, object], words: str) -> None:
    (note,) = notes_on(machine(**changes))
    assert words in note


def test_steady_machine_has_no_note() -> None:
    assert notes_on(machine()) == []
    assert notes_on(machine(governor=None, mhz_before=None, mhz_after=None, load_before=None)) == []


@pytest.mark.parametrize(
    ("cpuinfo", "units"),
    [
        ("processor : 0\nflags : fpu avx2 amx_int8 sse avx512_vnni\n", ("avx2", "avx512_vnni", "amx_int8")),
        ("processor : 0\nFeatures : fp asimd asimddp\n", ("asimddp",)),
        ("processor : 0\n", ()),
    ],
)
def test_instructions_that_decide_what_int8_gains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, units: tuple[str, ...]
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr("tsss_edge.machine.CPUINFO", tmp_path / "cpuinfo")
    assert examine_machine(threads=None, mhz_before=None, load_before=None).units == units


APP_OUTPUT = """[Step 11/11] Dumping statistics report
[ INFO ] Execution Devices:['CPU']
[ INFO ] Count:            1543 iterations
[ INFO ] Duration:         3001.23 ms
[ INFO ] Latency:
[ INFO ]    Median:        1.91 ms
[ INFO ]    Average:       1.94 ms
[ INFO ]    Min:           1.85 ms
[ INFO ]    Max:           9.03 ms
[ INFO ] Throughput:   514.12 FPS
"""


def test_benchmark_app_output_is_read() -> None:
    assert parse_app(APP_OUTPUT) == {"median": 1.91, "average": 1.94, "min": 1.85, "max": 9.03, "count": 1543.0}
    small = parse_app(APP_OUTPUT.replace("1.85 ms", "75.14 us"))
    assert small is not None and small["min"] == pytest.approx(0.07514), "of a very small network"
    assert parse_app("[ ERROR ] no such file") is None


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", None)])
def test_benchmark_app_runs_in_the_engines_precision(tmp_path: Path, precision: str, hint: str | None) -> None:
    engine = written_engine(tmp_path / "f.xml", tiny_meta(precision=precision))  # type: ignore[arg-type]
    args = app_command("benchmark_app", engine, duration_s=2.0, threads=2)
    assert ("-infer_precision" in args) == (hint is not None)
    assert hint is None or args[args.index("-infer_precision") + 1] == hint
    assert args[args.index("-nthreads") + 1] == "2" and args[args.index("-t") + 1] == "2"


def fake_tool(folder: Path, text: str, code: int = 0) -> str:
    """A program that prints what `benchmark_app` would."""
    (folder / "out.txt").write_text(text)
    tool = folder / "benchmark_app"
    tool.write_text(f"#!/bin/sh\ncat {folder / 'out.txt'}\nexit {code}\n")
    tool.chmod(0o755)
    return str(tool)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return written_engine(tmp_path / "net.xml", tiny_meta(CLASSES, SPEC)).path


def test_benchmark_app_is_compared(
    fakes: dict[str, FakeBackend], engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tsss_edge.bench, "find_benchmark_app", lambda: fake_tool(tmp_path, APP_OUTPUT))
    report = bench_engine(engine, duration_s=0.1, end_to_end=False)
    app = report.benchmark_app
    assert app is not None
    assert (app.latency_ms.p50, app.best_ms, app.runs) == (1.91, 1.85, 3 * 1543)
    assert 0 < app.ratio < 1.91 / 2 and 0 < app.ratio_best < 1.85 / 2  # ours takes at least 2 ms
    assert "benchmark_app" in report.summary()


def test_benchmark_app_that_fails_or_is_missing_is_said(
    fakes: dict[str, FakeBackend], engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tsss_edge.bench, "find_benchmark_app", lambda: fake_tool(tmp_path, APP_OUTPUT, code=1))
    report = bench_engine(engine, duration_s=0.1, end_to_end=False)
    assert report.benchmark_app is None and "benchmark_app failed on net.xml" in report.notes[0]
    monkeypatch.setattr(tsss_edge.bench, "find_benchmark_app", lambda: None)
    assert "is not installed" in bench_engine(engine, duration_s=0.1, end_to_end=False).notes[0]


def test_latency_goes_into_the_record(fakes: dict[str, FakeBackend], engine: Path) -> None:
    bench_engine(engine, duration_s=0.1, end_to_end=False, benchmark_app=False, store=False)
    assert Engine.load(engine).record.latency is None
    report = bench_engine(engine, duration_s=0.1, end_to_end=False, benchmark_app=False, threads=2)
    stored = Engine.load(engine).record.latency
    assert stored is not None
    assert (stored.p50_ms, stored.runs, stored.threads) == (report.latency_ms.p50, report.runs, 2)
