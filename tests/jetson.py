"""A "Jetson" in a folder: Python 3.10 whose system has NumPy 1.21.5, an OpenCV of that age and a TensorRT (a stand-in), no
PyTorch, no network but a folder of wheels, and the fake driver as an integrated GPU of compute capability 8.7.

Everything from the package index is fetched once and kept in the user's cache folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from pathlib import Path

import fakedriver
import pytest

from tsss_edge.config import cache_folder
from tsss_edge.deploy.kit import needs

SYSTEM = ("numpy==1.21.5", "opencv-python==4.5.5.64")  # Ubuntu 22.04's NumPy; JetPack 6 has OpenCV 4.8 built for it
TEMPTATION = "numpy==2.2.6"  # the last for Python 3.10, which pip would take

# The system's python3. A venv made with --system-site-packages sees the system's packages behind its own.
PYTHON3 = """#!/bin/sh
if [ "$1" = -m ] && [ "$2" = venv ] && [ "$3" = --system-site-packages ]; then
    "{python}" -m venv "$4" && echo "{system}" > "$4/lib/python3.10/site-packages/system.pth"
    exit $?
fi
PYTHONPATH="{system}" exec "{python}" "$@"
"""


def python310() -> str:
    """A Python 3.10 with pip; skips where there is none."""
    candidates = [*Path.home().glob(".pyenv/versions/3.10*/bin/python3.10"), shutil.which("python3.10") or ""]
    for candidate in filter(None, map(str, candidates)):
        done = subprocess.run(
            [candidate, "-c", "import ensurepip, sys; print(sys.version)"], capture_output=True, check=False
        )
        if done.returncode == 0:
            return candidate
    pytest.skip("no Python 3.10 on this machine, which JetPack 6 has")


def wheels(python: str, kit: Path) -> Path:
    """What the kit asks for, and a NumPy that would break the system's OpenCV."""
    asked = needs(next(kit.glob("*.whl")))
    name = f"jetson-wheels-{zlib.crc32(' '.join(asked).encode()):08x}"
    return _fetched(name, python, ["download", *asked, "numpy>=1.26,<2"], ["download", "--no-deps", TEMPTATION])


def system(python: str) -> Path:
    """NumPy and OpenCV as a folder on the path."""
    return _fetched("jetson-system", python, ["install", "--no-deps", *SYSTEM])


def make(folder: Path, report: Path) -> dict[str, str]:
    """Make the device in `folder`; variables of a process on it."""
    python = python310()
    packages = folder / "system"
    packages.mkdir(parents=True)
    for path in system(python).iterdir():
        (packages / path.name).symlink_to(path)
    (packages / "tensorrt").mkdir()
    shutil.copy(Path(__file__).with_name("tensorrt_standin.py"), packages / "tensorrt/__init__.py")
    binaries = folder / "bin"
    binaries.mkdir()
    (binaries / "python3").write_text(PYTHON3.format(python=python, system=packages))
    (binaries / "uname").write_text('#!/bin/sh\n[ "$1" = -r ] && echo 5.15.136-tegra || exec /usr/bin/uname "$@"\n')
    for path in binaries.iterdir():
        path.chmod(0o755)
    (folder / "lib").mkdir()
    shutil.copy(fakedriver.library(), folder / "lib/libcuda.so.1")
    return {
        "PATH": f"{binaries}:/usr/bin:/bin",
        "HOME": str(folder),
        "LD_LIBRARY_PATH": str(folder / "lib"),
        "FAKECUDA_INTEGRATED": "1",
        "FAKECUDA_REPORT": str(report),
        **{name: "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")},
    }


def _fetched(name: str, python: str, *steps: list[str]) -> Path:
    folder = cache_folder("tests") / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with fakedriver.locked(folder):
        if not folder.exists():
            part = folder.with_name(f"{name}.part")
            shutil.rmtree(part, ignore_errors=True)
            for action, *what in steps:
                to = "--dest" if action == "download" else "--target"
                command = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", action, to, str(part), *what]
                done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
                if done.returncode:
                    pytest.skip(f"the rehearsal's packages cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
            part.rename(folder)
    return folder
