"""Builds what a process needs to run PyCUDA and our code on the fake driver, once a machine, and gives its environment.

Three things, in the user's cache folder: PyCUDA itself (from the package index, against the CUDA headers of the nvcc on the
PATH), `libcuda.so.1` (the sources in `fakecuda`), and the kernels as functions a thread. What cannot be built skips the test; where CI or
TSSS_EDGE_NEEDS_FAKE is set it fails it, because there nobody reads why tests were skipped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from tsss_edge.config import cache_folder
from tsss_edge.kernels import PARAMETERS, fatbin

HERE = Path(__file__).parent / "fakecuda"
REPOSITORY = HERE.parents[1]
PYCUDA = "2026.1"
PATIENCE_S = 1800  # nine minutes on two busy cores were measured
SOURCES = ("memory.cpp", "streams.cpp", "modules.cpp")
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC")


def environment(
    report: Path, *, integrated: bool = False, devices: int = 1, capability: str = "", mib: int = 8192
) -> dict[str, str]:
    """Variables of a process that finds the fake driver, our tree and PyCUDA. It adds a line of JSON to `report` at its end.

    Args: capability: such as "8.7"; default 8.7 of an integrated GPU, else 8.9. mib: GPU memory.
    """
    pycuda = pycuda_folder()
    paths = [str(REPOSITORY), str(pycuda), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_LIBRARY_PATH": str(driver_folder(pycuda)),
        "FAKECUDA_KERNELS": str(kernels()),
        "FAKECUDA_REPORT": str(report),
        "FAKECUDA_INTEGRATED": str(int(integrated)),
        "FAKECUDA_DEVICES": str(devices),
        "FAKECUDA_MIB": str(mib),
        **({"FAKECUDA_CAPABILITY": capability.replace(".", "")} if capability else {}),
    }


def kernels() -> Path:
    """Library of the real kernels, a function a thread, for FAKECUDA_KERNELS."""
    entries = "".join(f"ENTRY({name}) " for name in PARAMETERS)
    command = ["g++", *FLAGS, "-O2", f"-I{HERE / 'include'}", f"-I{fatbin.FOLDER}", '-DSOURCE="kernels.cu"']
    command += [f"-DKERNELS={entries}", str(HERE / "threads.cpp")]
    return _built("kernels", [*_sources(), *fatbin.FOLDER.glob("*.[ch]*")], command)


def library() -> Path:
    """The driver alone, under a name that nothing but a test's `ctypes.CDLL` finds."""
    return _built("fake", _sources(), _driver_command([]))


def driver_folder(pycuda: Path) -> Path:
    """Folder with `libcuda.so.1`, which also has every function that this PyCUDA was linked with."""
    binary = next(pycuda.glob("pycuda/_driver*.so"))
    stubs = _stubs(binary)
    built = _built(f"libcuda-{pycuda.name}", _sources(), _driver_command(["-Wl,-soname,libcuda.so.1", stubs]))
    folder = built.with_suffix("")
    with locked(folder):
        folder.mkdir(exist_ok=True)
        if not (folder / "libcuda.so.1").exists():
            shutil.copy(built, folder / "libcuda.so.1")
    return folder


def pycuda_folder() -> Path:
    """Folder with PyCUDA and what it imports, but NumPy."""
    headers = cuda_headers()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = _cache() / f"pycuda-{PYCUDA}-{python}-cuda{_cuda_version(headers)}"
    with locked(folder):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=_cache()) as temporary:
                _build_pycuda(Path(temporary), headers).rename(folder)
    return folder


def cuda_headers() -> Path:
    """Folder of cuda.h beside the nvcc on the PATH."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None or shutil.which("g++") is None:
        unavailable("the fake CUDA driver needs nvcc, the CUDA headers and g++")
    told = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False
    ).stderr
    tops = [line.split("TOP=", 1)[1].strip() for line in told.splitlines() if "TOP=" in line]
    for top in [*tops, "/usr/local/cuda"]:
        if (Path(top) / "include/cuda.h").exists():
            return (Path(top) / "include").resolve()
    unavailable("the fake CUDA driver needs cuda.h, which is not beside nvcc")


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it where skips are not read."""
    if os.environ.get("CI") or os.environ.get("TSSS_EDGE_NEEDS_FAKE"):
        pytest.fail(f"{reason} (CI or TSSS_EDGE_NEEDS_FAKE is set, so this is no skip)", pytrace=False)
    pytest.skip(reason)


# ---------------------------------------------------------------------------------------------------------------------


def _cuda_version(headers: Path) -> str:
    lines = (headers / "cuda.h").read_text().splitlines()
    return next(line.split()[2] for line in lines if line.startswith("#define CUDA_VERSION"))


def _cache() -> Path:
    folder = cache_folder("tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sources() -> list[Path]:
    return [*HERE.glob("*.cpp"), *HERE.glob("*.h"), *HERE.glob("include/*")]


def _driver_command(extra: list[str]) -> list[str]:
    sources = [str(HERE / name) for name in SOURCES]
    return ["g++", *FLAGS, f"-I{cuda_headers()}", *sources, *extra, "-ldl"]


def _built(name: str, sources: list[Path], command: list[str]) -> Path:
    """What `command -o FILE` makes of `sources`, from the cache if they are the same."""
    digest = hashlib.sha256(repr(command).encode())
    for source in sorted(sources):
        digest.update(source.read_bytes())
    path = _cache() / f"{name}-{digest.hexdigest()[:16]}.so"
    with locked(path):
        if not path.exists():
            temporary = path.with_suffix(".part")
            subprocess.run([*command, "-o", str(temporary)], check=True, timeout=300)
            temporary.rename(path)
    return path


def _stubs(binary: Path) -> str:
    """A C file with all functions that `binary` wants of the driver. Weak: one that the fake has itself counts."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(binary)], capture_output=True, text=True, check=True)
    names = sorted(name for line in listed.stdout.splitlines() if (name := line.split()[-1]).startswith("cu"))
    lines = [f'extern "C" __attribute__((weak)) int {name}() {{ return fakecuda_absent("{name}"); }}' for name in names]
    text = 'extern "C" int fakecuda_absent(const char *name);\n' + "\n".join(lines) + "\n"
    path = _cache() / f"stubs-{hashlib.sha256(text.encode()).hexdigest()[:16]}.cpp"
    temporary = path.with_suffix(f".{os.getpid()}")  # another process may compile it right now
    temporary.write_text(text)
    temporary.replace(path)
    return str(path)


def _build_pycuda(work: Path, headers: Path) -> Path:
    """Download, build and unpack PyCUDA within `work`. Its link only needs a library with the driver's name."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    download = [*pip, "download", "--no-deps", "--no-binary", "pycuda", f"pycuda=={PYCUDA}", "--dest", str(work)]
    _try(download, "PyCUDA's sources cannot be fetched")
    with tarfile.open(next(work.glob("pycuda-*.tar.gz"))) as packed:
        packed.extractall(work, filter="data")
    source = next(path for path in work.glob("pycuda-*") if path.is_dir())
    empty = ["g++", "-shared", "-x", "c++", "/dev/null", "-Wl,-soname,libcuda.so.1", "-o", str(work / "libcuda.so")]
    subprocess.run(empty, check=True, timeout=60)
    settings = {
        "CUDA_ROOT": str(headers.parent),
        "CUDA_INC_DIR": [str(headers)],
        "LDFLAGS": ["-Wl,--no-as-needed", f"-L{work}", "-lcuda"],  # or the empty library is left out
        "CUDADRV_LIBNAME": [],
        "CUDA_ENABLE_CURAND": False,
    }
    (source / "siteconf.py").write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    _try([*pip, "install", "--target", str(work / "site"), str(source)], "PyCUDA cannot be built")
    return work / "site"


def _try(command: list[str], problem: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        unavailable(f"{problem}: not done after {PATIENCE_S} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        unavailable(f"{problem}: {last}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process builds `path`."""
    with path.with_name(path.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
