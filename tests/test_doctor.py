"""doctor: what is there is said, what is missing comes with its fix, and what follows from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from tsss_edge.backends.cuda.gpus import Gpu
from tsss_edge.doctor import Check, DoctorReport, cuda, examine, host, packages

H100 = Gpu(name="NVIDIA H100", compute_capability="9.0", total_bytes=80 << 30, free_bytes=79 << 30, driver_cuda="13.0")


def find(report: DoctorReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def test_this_machine_is_told_as_table_and_as_json() -> None:
    report = examine()
    text = report.summary()
    assert find(report, "Python").found.startswith(sys.version.split()[0])
    assert all(check.name in text and check.found in text for check in report.checks)
    assert msgspec.json.decode(msgspec.json.encode(report), type=DoctorReport) == report
    assert "To get what is missing" in text


def test_every_missing_thing_has_a_fix() -> None:
    assert [c.name for c in examine().checks if c.status != "ok" and not c.fix] == []


def test_hidden_packages_are_missing_and_the_abilities_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    report = examine()
    assert find(report, "OpenVINO").status == "missing"
    assert find(report, "OpenVINO").fix == "pip install 'tsss-edge[cpu]'"
    assert not report.can["build and run CPU engines (OpenVINO)"]
    assert not report.can["train (PyTorch)"]


def test_a_gpu_opens_what_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = msgspec.structs.replace(H100, driver_cuda="12.4")
    monkeypatch.setattr(cuda, "gpus", lambda: (gpu,))
    monkeypatch.setattr(cuda, "driver_problem", lambda: "")
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: True)
    report = examine()
    assert "not served by TensorRT-RTX" in find(report, "GPU 0").found
    assert "79.0 GiB free of 80.0" in find(report, "GPU 0").found
    driver = find(report, "CUDA driver")
    assert driver.status == "warning" and "CUDA 12.4" in driver.found
    assert report.can["build TensorRT engines"] and report.can["run engines on the GPU"]


def test_no_driver_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no CUDA GPU on this machine")
    report = examine()
    assert find(report, "CUDA driver").found == "no CUDA GPU on this machine"
    assert not report.can["run engines on the GPU"]


def test_version_pairs_are_compared_with_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cu130"}
    names = [SimpleNamespace(metadata={"Name": name}) for name in ("tensorrt_cu12_libs", "tensorrt-cu12", "numpy")]
    monkeypatch.setattr(cuda.importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(cuda.importlib.metadata, "distributions", lambda: names)
    monkeypatch.setattr(cuda, "gpus", lambda: (msgspec.structs.replace(H100, driver_cuda="12.4"),))
    torch, tensorrt = cuda._pairs()
    assert (torch.name, torch.status) == ("PyTorch + driver", "warning")
    assert torch.found == "built for CUDA 13, the driver serves 12.4" and "CUDA 12" in torch.fix
    assert (tensorrt.name, tensorrt.status) == ("TensorRT + driver", "ok")
    versions["torch"] = "2.13.0+cpu"
    assert [check.name for check in cuda._pairs()] == ["TensorRT + driver"]
    monkeypatch.setattr(cuda, "gpus", lambda: ())
    assert cuda._pairs() == []


def test_hardware_decoder_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda._nvdec() == [], "no GPU, no decoder"
    monkeypatch.setattr(cuda, "gpus", lambda: (H100,))
    monkeypatch.setattr(cuda, "output", lambda *command: "")
    (missing,) = cuda._nvdec("libnone.so.1")
    assert missing.status == "missing" and "NVIDIA_DRIVER_CAPABILITIES" in missing.fix
    (partly,) = cuda._nvdec("libc.so.6")
    assert partly.status == "warning" and "gstreamer1.0-plugins-bad" in partly.fix
    monkeypatch.setattr(cuda, "output", lambda *command: "nvh264dec: NVDEC h264 Video Decoder")
    assert cuda._nvdec("libc.so.6")[0].status == "ok"


def test_cpuinfo_and_meminfo_are_read_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 amx_bf16\n")
    read = host._cpuinfo
    monkeypatch.setattr(host, "_cpuinfo", lambda key: read(key, cpu))
    assert host.cpu_name() == "Intel(R) Xeon(R)"
    assert host.isa_flags() == ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")
    cpu.write_text("Processor\t: 0\nFeatures\t: fp asimd asimddp bf16\n")
    assert host.isa_flags() == ("asimd", "asimddp", "bf16")
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:  2048 kB\nMemFree: 10 kB\nMemAvailable: 1024 kB\n")
    assert host.memory_bytes(memory) == (2048 * 1024, 1024 * 1024)
    assert host.memory_bytes(tmp_path / "none") == (0, 0)


def test_old_cpu_and_little_space_are_warnings() -> None:
    assert host._isa(("avx2",)).status == "warning"
    assert host._isa(("avx2", "avx512_vnni")).status == "ok"
    assert host._amount("disk", 1 << 20, host.LITTLE_DISK, "1 MiB").status == "warning"


def test_jetson_only_where_l4t_is(tmp_path: Path) -> None:
    assert cuda._jetson(tmp_path / "none") == []
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.0\n")
    checks = {c.name: c for c in cuda._jetson(release)}
    assert checks["Jetson"].found == "R36 (release), REVISION: 4.0"
    assert set(checks) == {"Jetson", "DLA", "NVDEC"}


def test_doctor_imports_no_torch() -> None:
    script = "import json, sys; from tsss_edge.doctor import examine; examine(); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "tensorrt_rtx", "onnxruntime"} & set(json.loads(done.stdout))
