"""The `.cu` files without a GPU (g++ runs their formulas against the CPU twins), through nvcc, and on a GPU."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostcuda import HostKernels, MatrixStruct, PitchesStruct, PlacementStruct, signature
from kernelkit import assert_labels, random_logits, whole

from tsss_edge.artifacts import Preprocess, voc_color
from tsss_edge.backends.cuda.device import CudaDevice
from tsss_edge.errors import UnavailableError
from tsss_edge.kernels import PARAMETERS, fatbin
from tsss_edge.kernels.overlay import overlay, tint_table
from tsss_edge.kernels.preprocess import preprocess
from tsss_edge.kernels.upsample_argmax import upsample_argmax

FITS = [("stretch", (270, 480)), ("letterbox", (97, 640)), ("crop", (481, 269)), ("stretch", (33, 31))]

# Both round sums of the same four products to float32, in another order: logits below 40 times 4 * 2^-24, and a margin.
FLOAT_TIE = 4e-5
# OpenCV rounds weights to 1/2048 (0.12 of a level) and may then round the value the other way.
ONE_LEVEL = 1


@pytest.fixture(scope="session")
def host(host_kernels: Path) -> HostKernels:
    return HostKernels(host_kernels)


def picture(frame_hw: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (*frame_hw, 3), dtype=np.uint8)


@pytest.mark.parametrize("bgr", [True, False])
@pytest.mark.parametrize(("fit", "frame_hw"), FITS)
def test_preprocess(host: HostKernels, fit: Any, frame_hw: tuple[int, int], bgr: bool) -> None:
    spec = Preprocess(size_hw=(128, 160), fit=fit)
    got, want = host.preprocess(picture(frame_hw), spec, bgr=bgr), preprocess(picture(frame_hw), spec, bgr=bgr)
    difference = np.abs(got.astype(int) - want)
    assert difference.max() <= ONE_LEVEL
    assert difference.mean() < 0.2
    padding = (want == 0).all(-1)
    assert (got[padding] <= ONE_LEVEL).all()


def test_preprocess_is_exact_where_the_size_stays(host: HostKernels) -> None:
    frame = picture((64, 96))
    np.testing.assert_array_equal(host.preprocess(frame, Preprocess(size_hw=(64, 96)), bgr=True), frame[..., ::-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("fit", "frame_hw"), FITS)
def test_upsample_argmax(host: HostKernels, fit: Any, frame_hw: tuple[int, int], dtype: type) -> None:
    logits = random_logits((21, 16, 20), seed=5).astype(dtype)
    placement = Preprocess(size_hw=(128, 160), fit=fit).place(frame_hw)
    got = host.upsample_argmax(logits, frame_hw, placement)
    assert_labels(got, logits, placement, tie=FLOAT_TIE)
    assert (got != upsample_argmax(logits, frame_hw, placement)).mean() < 1e-4


def test_half_precision_of_every_kind(host: HostKernels) -> None:
    """All 65,536 bit patterns but the NaNs, two classes: the larger wins, infinities and subnormals too."""
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    values = values[~np.isnan(values)][: 255 * 240].reshape(1, 240, 255)
    logits = np.concatenate([values, np.zeros_like(values)])
    np.testing.assert_array_equal(host.largest(logits), logits.argmax(0))


def test_subnormal_half_precision_has_its_value(host: HostKernels) -> None:
    """From 2^-14, the smallest normal number, to 0 the middle is 2^-15, a subnormal: class 1 wins from there."""
    logits = np.array([[[2**-14, 0]], [[2**-15, 2**-15]]], np.float16)
    assert host.upsample_argmax(logits, (1, 16), whole(logits, (1, 16)))[0].tolist() == [0] * 8 + [1] * 8


def test_ties_go_to_the_smaller_class(host: HostKernels) -> None:
    """16 t and 1 are equal at t = 1/16, which is pixel 4, in both orders of the classes."""
    rising, constant = [[0, 16]], [[1, 1]]
    for classes, want in (([rising, constant], [1, 0, 0]), ([constant, rising], [0, 0, 1])):
        logits = np.array(classes, np.float32)
        assert host.upsample_argmax(logits, (1, 16), whole(logits, (1, 16)))[0, 3:6].tolist() == want


def test_upsample_argmax_with_one_class(host: HostKernels) -> None:
    logits = np.full((1, 4, 4), -3, np.float32)
    assert not host.upsample_argmax(logits, (9, 9), whole(logits, (9, 9))).any()


def test_overlay_gives_the_same_bytes(host: HostKernels) -> None:
    palette = tuple(voc_color(k) for k in range(21))
    frame, labels = picture((37, 51)), np.random.default_rng(4).integers(0, 24, (37, 51), dtype=np.uint8)
    labels[0, :9] = 255
    for alpha, shown in ((0.5, None), (0.3, (0, 3, 20)), (1.0, None), (0.0, None)):
        want = overlay(frame, labels, palette, alpha, shown=shown)
        table, keep = tint_table(palette, alpha, shown)
        got = frame.copy()
        host.call("overlay", got, labels, table, keep, got.size)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", PARAMETERS)
def test_pycuda_packs_what_the_kernel_takes(name: str) -> None:
    letters = {
        ctypes.c_void_p: "P",
        ctypes.c_int: "i",
        PlacementStruct: 8 * "i",
        PitchesStruct: "iii",
        MatrixStruct: 6 * "i",
    }
    assert PARAMETERS[name] == "".join(letters[kind] for kind in signature(name))


def test_nvcc_builds_for_every_gpu(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH")
    fatbin.build(tmp_path / "all.fatbin")
    assert (tmp_path / "all.fatbin").stat().st_size > 20_000


# ---------------------------------------------------------------------------------------------------------------------
# Where the fatbin comes from


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tsss-edge/kernels"


def fake_nvcc(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    (folder / "nvcc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def image(*entries: tuple[int, int]) -> bytes:
    """A fatbin with empty entries of (kind, capability)."""
    body = b"".join(struct.pack("<HHIQ12xI", kind, 0, 64, 0, code).ljust(64, b"\0") for kind, code in entries)
    return struct.pack("<IHHQ", fatbin.FATBIN_MAGIC, 1, 16, len(body)) + body


def test_built_once_and_kept(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a GPU that the PTX is too new for."""
    fake_nvcc(
        tmp_path / "bin",
        monkeypatch,
        f'echo "$@" >> {tmp_path}/calls; while [ "$1" != -o ]; do shift; done; echo x > "$2"',
    )
    first = fatbin.find_or_build("7.2")
    assert first == empty_cache / f"kernels-{fatbin.source_hash()}-sm72.fatbin"
    assert fatbin.find_or_build("7.2") == first
    assert "-gencode=arch=compute_72,code=sm_72" in (tmp_path / "calls").read_text()
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_shipped_file_of_these_sources_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in fatbin.SOURCES:
        shutil.copy(fatbin.FOLDER / name, tmp_path)
    monkeypatch.setattr(fatbin, "FOLDER", tmp_path)
    shipped = tmp_path / f"kernels-{fatbin.source_hash()}.fatbin"
    shipped.write_bytes(image((2, 75), (2, 72)))
    assert fatbin.find_or_build("7.2") == shipped
    (tmp_path / "overlay.cu").write_text("// changed")
    fake_nvcc(tmp_path / "bin", monkeypatch, "exit 3")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UnavailableError, match="exit code 3"):
        fatbin.find_or_build("7.2")


@pytest.mark.parametrize(
    ("entries", "capability", "answer"),
    [
        ([(2, 75), (2, 87)], "8.7", True),
        ([(2, 80)], "8.7", True),  # an older GPU of the same major version
        ([(2, 89)], "8.7", False),
        ([(2, 75)], "8.7", False),
        ([(1, 75)], "12.1", True),
        ([(1, 90)], "8.7", False),
        ([(2, 100)], "10.3", True),
        ([], "8.7", False),
    ],
)
def test_which_gpus_a_fatbin_serves(entries: list[tuple[int, int]], capability: str, answer: bool) -> None:
    assert fatbin.serves(image(*entries), capability) == answer
    assert not fatbin.serves(b"x", capability)


def test_a_shipped_file_without_code_for_this_gpu_is_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*fatbin.SOURCES, fatbin.PTX_FILE):
        shutil.copy(fatbin.FOLDER / name, tmp_path)
    monkeypatch.setattr(fatbin, "FOLDER", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shipped = tmp_path / f"kernels-{fatbin.source_hash()}.fatbin"
    shipped.write_bytes(image((2, 75), (2, 86)))
    assert fatbin.find_or_build("8.6") == shipped
    assert fatbin.find_or_build("10.3") == tmp_path / fatbin.PTX_FILE


# ---------------------------------------------------------------------------------------------------------------------
# PTX in every wheel


@pytest.mark.parametrize("capability", ["7.5", "8.7", "10.3", "12.1"])
def test_no_gpu_from_turing_on_needs_nvcc(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    fake_nvcc(tmp_path / "bin", monkeypatch, "exit 3")
    assert fatbin.find_or_build(capability) == fatbin.FOLDER / fatbin.PTX_FILE
    with pytest.raises(UnavailableError, match="exit code 3"):
        fatbin.find_or_build("7.0")


def test_ptx_of_other_sources_is_not_taken(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*fatbin.SOURCES, fatbin.PTX_FILE):
        shutil.copy(fatbin.FOLDER / name, tmp_path)
    monkeypatch.setattr(fatbin, "FOLDER", tmp_path)
    (tmp_path / "overlay.cu").write_text("// changed")
    fake_nvcc(tmp_path / "bin", monkeypatch, "exit 3")
    with pytest.raises(UnavailableError, match="exit code 3"):
        fatbin.find_or_build("8.7")


def test_the_ptx_in_git_is_of_the_sources_in_git(tmp_path: Path) -> None:
    """If this fails: `python -m tsss_edge.kernels.fatbin --ptx`."""
    ptx = fatbin.FOLDER / fatbin.PTX_FILE
    assert fatbin.ptx_source_hash(ptx) == fatbin.source_hash()
    assert all(f".entry {name}(" in ptx.read_text() for name in PARAMETERS)


def test_ptx_assembles_for_every_gpu_and_keeps_the_bits(tmp_path: Path) -> None:
    if shutil.which("ptxas") is None:
        pytest.skip("no ptxas on PATH")
    ptx = fatbin.FOLDER / fatbin.PTX_FILE
    for capability in fatbin.CAPABILITIES:
        name = f"sm_{capability.replace('.', '')}"
        subprocess.run(["ptxas", f"-arch={name}", str(ptx), "-o", str(tmp_path / name)], check=True, timeout=60)
    assert "fma." not in ptx.read_text(), "a contracted multiplication gives other bits than the host"


def test_compiler_errors_are_one_line_and_leave_nothing(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvcc(tmp_path / "bin", monkeypatch, "echo 'nvcc fatal : Unsupported gpu architecture' >&2; exit 1")
    with pytest.raises(UnavailableError, match=r"kernels for 7\.2: nvcc fatal : Unsupported gpu"):
        fatbin.find_or_build("7.2")
    assert not list(empty_cache.iterdir())


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without nvcc that is said, and with it where the file could not be kept: the stream then goes on on the CPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    fake_nvcc(tmp_path / "bin", monkeypatch, "exit 0")
    with pytest.raises(UnavailableError, match="cannot be kept in /proc/nowhere"):
        fatbin.find_or_build("7.2")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(UnavailableError, match="no nvcc"):
        fatbin.find_or_build("7.2")


def test_a_user_without_a_home_is_told_what_to_set(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(UnavailableError, match="set XDG_CACHE_HOME"):
        fatbin.find_or_build("7.2")


def test_no_nvcc_says_what_to_do(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(UnavailableError, match=r"python -m tsss_edge.kernels.fatbin FOLDER"):
        fatbin.find_or_build("7.2")


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU


@pytest.mark.gpu
def test_gpu_gives_the_bits_of_the_host(host: HostKernels) -> None:
    """Exactly: integers, exact fractions, and the same float operations without contraction."""
    pytest.importorskip("pycuda.driver")
    device = CudaDevice()
    frame, spec = picture((481, 269)), Preprocess(size_hw=(128, 160), fit="letterbox")
    placement = spec.place((481, 269))
    palette = tuple(voc_color(k) for k in range(21))
    table, keep = tint_table(palette, 0.5, None)
    with device.current():
        stream = device.stream()

        def sent(array: np.ndarray) -> int:
            pinned = device.pinned(array.shape, array.dtype.type)
            np.copyto(pinned, array)
            address = device.allocate(array.nbytes)
            device.copy_in(address, pinned, stream)
            stream.synchronize()
            return address

        def fetched(address: int, shape: tuple[int, ...]) -> np.ndarray:
            pinned = device.pinned(shape, np.uint8)
            device.copy_out(pinned, address, stream)
            stream.synchronize()
            return pinned.copy()

        on_gpu, out = sent(frame), device.allocate(3 * 128 * 160)
        device.preprocess(on_gpu, out, placement, (481, 269), (128, 160), stream)
        np.testing.assert_array_equal(fetched(out, (128, 160, 3)), host.preprocess(frame, spec, bgr=True))
        for dtype in (np.float32, np.float16):
            logits = random_logits((21, 16, 20), seed=6).astype(dtype)
            labels, best = device.allocate(481 * 269), device.allocate(16 * 20)
            device.upsample_argmax(
                sent(logits), best, labels, placement, (21, 16, 20), (481, 269), stream, dtype=np.dtype(dtype).name
            )
            want = host.upsample_argmax(logits, (481, 269), placement)
            np.testing.assert_array_equal(fetched(labels, (481, 269)), want)
        device.overlay(on_gpu, labels, sent(table), keep, (481, 269), stream)
        np.testing.assert_array_equal(fetched(on_gpu, (481, 269, 3)), overlay(frame, want, palette))
    device.close()
