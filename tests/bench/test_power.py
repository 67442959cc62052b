"""Power mode, clocks and throttling, from an nvpmodel and a sysfs made here."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_onnx

from tsss_edge.artifacts import LatencyRecord
from tsss_edge.bench import bench_engine, latency_record, power
from tsss_edge.bench.power import Power, note_on_record, read_power
from tsss_edge.bench.timing import Timed
from tsss_edge.errors import UnavailableError


def jetson(folder: Path, monkeypatch: pytest.MonkeyPatch, *, state: int = 0) -> Path:
    files = {
        "devfreq/17000000.gpu/cur_freq": "306000000\n",
        "devfreq/17000000.gpu/max_freq": "624750000\n",
        "devfreq/bwmgr/cur_freq": "1\n",
        "thermal/cooling_device0/type": "pwm-fan\n",
        "thermal/cooling_device0/cur_state": "3\n",
        "thermal/cooling_device1/type": "devfreq-17000000.gpu\n",
        "thermal/cooling_device1/cur_state": f"{state}\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    tool = folder / "nvpmodel"
    tool.write_text("#!/bin/sh\n[ \"$1\" = -q ] && printf 'NV Fan Mode:quiet\\nNV Power Mode: MODE_15W\\n2\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def test_a_jetson_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = read_power(jetson(tmp_path, monkeypatch))
    assert state == Power(mode="15W", gpu_mhz=306.0, gpu_max_mhz=624.75)
    assert state.summary() == "power mode 15W, GPU at 306 of 625 MHz"
    assert state.notes(state) == []


def test_throttling_and_another_mode_are_reasons_to_mistrust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = read_power(jetson(tmp_path, monkeypatch, state=2))
    notes = after.notes(Power(mode="MAXN"))
    assert notes[0] == "the power mode changed from MAXN to 15W during the run: measure again"
    assert notes[1].startswith("throttled by devfreq-17000000.gpu: ")


def test_other_machines_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power.shutil, "which", lambda name: None)
    assert read_power(tmp_path) == Power() and Power().summary() == ""


def test_the_mode_stands_in_the_record_and_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jetson(tmp_path, monkeypatch)
    monkeypatch.setattr(power, "SYSFS", tmp_path)
    report = bench_engine(tiny_onnx(tmp_path / "t.onnx").path, duration_s=0.05, end_to_end=False)
    assert "power mode 15W" in report.machine.summary()
    timed = Timed(
        file="t", latency_ms=report.latency_ms, throughput_fps=1.0, runs=1, ratio=1.0, best_ms=1.0, ratio_best=1.0
    )
    assert latency_record(timed, None).power_mode == "15W"


def test_times_of_two_power_modes_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side by side, nor one measured now with a record's."""
    with pytest.raises(UnavailableError, match="changed from MAXN to 15W while networks were timed side by side"):
        Power(mode="15W").require_same_mode(Power(mode="MAXN"))
    Power(mode="15W").require_same_mode(Power(mode="15W"))
    record = LatencyRecord(p50_ms=4.0, p95_ms=5.0, p99_ms=6.0, runs=9, threads=None, power_mode="15W")
    assert note_on_record(record, Power(mode="15W")) == note_on_record(None, Power(mode="15W")) == []
    assert (
        "4.00 ms is of power mode 15W, this run of MAXN: not compared" in note_on_record(record, Power(mode="MAXN"))[0]
    )
    model = tiny_onnx(tmp_path / "tiny.onnx")
    modes = iter(("MAXN", *("15W",) * 9))
    monkeypatch.setattr("tsss_edge.bench.read_power", lambda: Power(mode=next(modes)))
    with pytest.raises(UnavailableError, match="two modes are not compared"):
        bench_engine(model.path, compare=[model.path], duration_s=0.01, store=False)
