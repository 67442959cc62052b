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
from tsss_edge.doctor import Check, DoctorReport, checks, examine

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


def test_a_broken_library_is_a_finding_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cv2 that was built for NumPy 1 raises beside NumPy 2, and doctor is what people call then."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    report = examine()
    broken = find(report, "OpenCV")
    assert broken.status == "missing" and broken.fix and "ModuleNotFoundError" in broken.found
    assert find(report, "Python").status == "ok" and not report.can["show a window"]


def test_every_missing_thing_has_a_fix() -> None:
    assert [c.name for c in examine().checks if c.status != "ok" and not c.fix] == []


def test_a_machine_without_nvcc_lacks_nothing_and_one_beside_path_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "find_nvcc", lambda: None)
    assert (checks._nvcc().status, checks._nvcc().fix) == ("ok", "") and "not needed" in checks._nvcc().found
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho Cuda compilation tools, release 12.6, V12.6.68\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setattr(checks, "find_nvcc", lambda: str(tmp_path / "nvcc"))  # as /usr/local/cuda/bin/nvcc of a Jetson
    assert checks._nvcc().found == "CUDA 12.6"


def test_hidden_packages_are_missing_and_the_abilities_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    report = examine()
    assert find(report, "OpenVINO").status == "missing"
    assert find(report, "OpenVINO").fix == "pip install 'tsss-edge[cpu]'"
    assert not report.can["build and run CPU engines (OpenVINO)"]
    assert not report.can["train (PyTorch)"]


def test_a_gpu_opens_what_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = msgspec.structs.replace(H100, driver_cuda="12.4")
    monkeypatch.setattr(checks, "gpus", lambda: (gpu,))
    monkeypatch.setattr(checks, "driver_problem", lambda: "")
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: True)
    report = examine()
    assert "not served by TensorRT-RTX" in find(report, "GPU 0").found
    assert "79.0 GiB free of 80.0" in find(report, "GPU 0").found
    driver = find(report, "CUDA driver")
    assert driver.status == "warning" and "CUDA 12.4" in driver.found
    assert report.can["build TensorRT engines"] and report.can["run engines on the GPU"]


def test_no_driver_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "driver_problem", lambda: "no CUDA GPU on this machine")
    report = examine()
    assert find(report, "CUDA driver").found == "no CUDA GPU on this machine"
    assert not report.can["run engines on the GPU"]


def test_version_pairs_are_compared_with_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cu130"}
    names = [SimpleNamespace(metadata={"Name": name}) for name in ("tensorrt_cu12_libs", "tensorrt-cu12", "numpy")]
    monkeypatch.setattr(checks.importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(checks.importlib.metadata, "distributions", lambda: names)
    monkeypatch.setattr(checks, "gpus", lambda: (msgspec.structs.replace(H100, driver_cuda="12.4"),))
    torch, tensorrt = checks._pairs()
    assert (torch.name, torch.status) == ("PyTorch + driver", "warning")
    assert torch.found == "built for CUDA 13, the driver serves 12.4" and "CUDA 12" in torch.fix
    assert (tensorrt.name, tensorrt.status) == ("TensorRT + driver", "ok")
    versions["torch"] = "2.13.0+cpu"
    assert [check.name for check in checks._pairs()] == ["TensorRT + driver"]
    monkeypatch.setattr(checks, "gpus", lambda: ())
    assert checks._pairs() == []


def test_hardware_decoder_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks._nvdec() == [], "no GPU, no decoder"
    monkeypatch.setattr(checks, "gpus", lambda: (H100,))
    monkeypatch.setattr(checks, "output", lambda *command: "")
    (missing,) = checks._nvdec("libnone.so.1")
    assert missing.status == "missing" and "NVIDIA_DRIVER_CAPABILITIES" in missing.fix
    (partly,) = checks._nvdec("libc.so.6")
    assert partly.status == "warning" and "pip install PyNvVideoCodec" in partly.fix
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert checks._nvdec("libc.so.6")[0].status == "ok"


def test_old_cpu_and_little_space_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    for saturates, words in (
        (True, "INT8 sums saturate here. `tsss-edge calibrate "),
        (False, "float may be faster here"),
    ):
        monkeypatch.setattr(checks, "int8_saturates", lambda answer=saturates: answer)
        told = checks._isa(("avx2",))
        assert told.status == "warning" and words in told.fix
    assert checks._isa(("avx2", "avx512_vnni")).status == "ok"
    assert checks._amount("disk", 1 << 20, checks.LITTLE_DISK, "1 MiB").status == "warning"


def test_jetson_only_where_l4t_is(tmp_path: Path) -> None:
    assert checks._jetson(tmp_path / "none") == []
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.0\n")
    found = {c.name: c for c in checks._jetson(release)}
    assert found["Jetson"].found == "R36 (release), REVISION: 4.0"
    assert set(found) == {"Jetson", "DLA", "NVDEC"}


def test_doctor_imports_no_torch() -> None:
    script = "import json, sys; from tsss_edge.doctor import examine; examine(); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "tensorrt_rtx", "onnxruntime"} & set(json.loads(done.stdout))
