"""Everything a host without a network needs -> one folder of parts and an `install.sh` that joins and installs them.

Wheels are chosen by platform tag and Python version of the host, not of this machine. They are stored uncompressed inside one
xz stream, because a wheel's own deflate hides from xz what it could save (TensorRT-RTX: 95 MB as a wheel, 64 MiB this way).
"""

from __future__ import annotations

import importlib.metadata
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, cast

from tsss_edge.artifacts import Struct
from tsss_edge.deploy.wheel import DISTRIBUTION, write_wheel
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import sha256_file, write_json

MIB = 1 << 20
# pip takes the newest tag it finds; older tags run on newer systems.
PLATFORMS: dict[str, tuple[str, ...]] = {
    machine: tuple(
        f"{tag}_{machine}" for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    )
    for machine in ("x86_64", "aarch64")
}
OLD_PYTHON_NEEDS = ("tomli", "exceptiongroup", "typing-extensions")  # pip reads markers with the Python that runs it

INSTALL = """#!/bin/sh
# Joins the parts of this bundle and installs tsss-edge without a network.
# PYTHON: the host's Python {python} (default python{python}). VENV: where to install (default ./venv).
set -eu
cd "$(dirname "$0")"
PYTHON=${{PYTHON:-python{python}}}
VENV=${{VENV:-venv}}
have=$("$PYTHON" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.machine())')
if [ "$have" != "{python} {machine}" ]; then
    echo "this bundle is for Python {python} on {machine}, $PYTHON is $have; set PYTHON" >&2
    exit 1
fi
sha256sum -c SHA256SUMS
cat bundle.tar.xz.* | "$PYTHON" -c 'import sys, tarfile
tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz").extractall(".")'
"$PYTHON" -m venv {venv_options}"$VENV"
"$VENV"/bin/python -m pip install --no-index --find-links wheels '{requirement}'{more}
echo "installed: $(pwd)/$VENV/bin/tsss-edge"
"""

Download = Callable[[Sequence[str]], None]


class Bundle(Struct, frozen=True):
    """`bundle.json`: for which host, with what inside (SHA-256 of each wheel as downloaded), in which parts."""

    python: str
    machine: str
    extras: tuple[str, ...]
    wheels: dict[str, str]
    files: tuple[str, ...]
    parts: tuple[str, ...]
    bytes: int

    def summary(self, folder: Path) -> str:
        """What lies in `folder` and what to do with it; for a terminal."""
        size = f"{len(self.wheels)} wheels in {len(self.parts)} parts, {self.bytes / MIB:.0f} MiB"
        host = f"for Python {self.python} on {self.machine}"
        return f"{folder}: {size}, {host}\n  copy it there and run: sh {folder.name}/install.sh"


def write_bundle(
    out: Path,
    *,
    python: str = "3.10",
    machine: str = "x86_64",
    extras: Sequence[str] = ("onnx", "cpu"),
    requirements: Sequence[str] = (),
    wheels: Sequence[Path] = (),
    files: Sequence[Path] = (),
    part_mib: int = 48,
    preset: int = 6,
    system_packages: bool = False,
    kernels: bool = False,
    download: Download | None = None,
) -> Bundle:
    """Write a bundle to the folder `out`; a failure leaves nothing.

    Args:    python: of the host, such as "3.10"; machine: "x86_64" or "aarch64" (glibc 2.28 or later).
             extras: of tsss-edge, such as "rtx"; requirements: more packages for pip; wheels: ready files (PyCUDA built
             for that Python); files: copied beside the wheels (datasets, checkpoints, scripts).
             part_mib: largest size of a part; preset: of xz, 0 (fast) to 9 (small).
             kernels: compile the CUDA kernels here (needs nvcc) and put them into our wheel, for hosts without nvcc.
             system_packages: let the host's own packages through (Jetson: OpenCV, TensorRT, PyTorch).
    Raises:  ArtifactError: `out` exists. UnavailableError: pip cannot get a package for that host. ValueError: bad argument.
    """
    _require_arguments(python, machine, part_mib, extras)
    if out.exists():
        raise ArtifactError(f"{out}: exists already; choose another --out folder for the bundle")
    if missing := [file for file in (*wheels, *files) if not file.exists()]:
        raise ArtifactError(f"{missing[0]}: no such file or folder to put into the bundle")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        content, parts_folder = staging / "content", staging / "bundle"
        parts_folder.mkdir()
        names = _gather(
            content, python, machine, extras, requirements, [*wheels, _our_wheel(staging, kernels)], download or run_pip
        )
        for file in files:
            _copy(file, content / "files" / file.name)
        parts = pack(content, parts_folder, part_mib * MIB, preset)
        bundle = Bundle(
            python=python,
            machine=machine,
            extras=tuple(extras),
            wheels=names,
            files=tuple(file.name for file in files),
            parts=tuple(p.name for p in parts),
            bytes=sum(p.stat().st_size for p in parts),
        )
        _write_rest(parts_folder, bundle, parts, [*requirements, *_names(wheels)], system_packages)
        parts_folder.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return bundle


def _require_arguments(python: str, machine: str, part_mib: int, extras: Sequence[str]) -> None:
    major, _, minor = python.partition(".")
    if major != "3" or not minor.isdigit():
        raise ValueError(f"python {python!r}: expected a version such as 3.10")
    if machine not in PLATFORMS:
        raise ValueError(f"machine {machine!r}: choose from {', '.join(PLATFORMS)}")
    if part_mib < 1:
        raise ValueError(f"part size {part_mib} MiB: must be at least 1")
    known = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    if unknown := [extra for extra in extras if extra not in known]:  # pip would only warn, and download for minutes
        raise ValueError(f"no extra named {unknown[0]!r}; choose from {', '.join(known)}")


def _gather(
    content: Path,
    python: str,
    machine: str,
    extras: Sequence[str],
    requirements: Sequence[str],
    ready: Sequence[Path],
    download: Download,
) -> dict[str, str]:
    """All wheels into `content`/wheels, the last of `ready` being ours -> file name -> SHA-256 as downloaded."""
    folder = content / "wheels"
    folder.mkdir(parents=True)
    for wheel in ready:
        shutil.copyfile(wheel, folder / wheel.name)
    ours = folder / ready[-1].name
    old = OLD_PYTHON_NEEDS if int(python.split(".")[1]) < 11 else ()
    wanted = [f"{ours}[{','.join(extras)}]" if extras else str(ours), *requirements, *old]
    download([*pip_options(folder, python, machine), *wanted])
    sums = {path.name: sha256_file(path) for path in sorted(folder.glob("*.whl"))}
    for path in folder.glob("*.whl"):
        store_uncompressed(path)
    return sums


def _our_wheel(folder: Path, kernels: bool) -> Path:
    if not kernels:
        return write_wheel(folder)
    from tsss_edge.kernels import fatbin

    built = folder / f"kernels-{fatbin.source_hash()}.fatbin"
    fatbin.build(built)
    return write_wheel(folder, more={f"tsss_edge/kernels/{built.name}": built})


def pip_options(folder: Path, python: str, machine: str) -> list[str]:
    """Arguments of `pip download` for a host that is not this one."""
    tags = [option for tag in PLATFORMS[machine] for option in ("--platform", tag)]
    abis = [option for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for option in ("--abi", abi)]
    where = ["--dest", str(folder), "--find-links", str(folder), "--only-binary", ":all:"]
    return ["download", "--quiet", *where, "--python-version", python, "--implementation", "cp", *abis, *tags]


def run_pip(arguments: Sequence[str]) -> None:
    """Run pip. Raises: UnavailableError: it fails, with its own last error line."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise UnavailableError(f"pip cannot download for that host: {lines[-1] if lines else done.stderr.strip()}")


def store_uncompressed(wheel: Path) -> None:
    """Rewrite a wheel with its members stored, so that xz sees their content. Installs exactly as before."""
    packed = wheel.with_suffix(".packed")
    wheel.replace(packed)
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            with source.open(member) as reader, target.open(_stored(member), "w", force_zip64=True) as writer:
                shutil.copyfileobj(reader, writer, MIB)
    packed.unlink()


def _stored(member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(member.filename, member.date_time)
    info.external_attr = member.external_attr
    return info


class _Parts:
    """A file object that writes on into the next part when one is full."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths: list[Path] = []
        self._folder, self._size, self._left = folder, size, 0

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            if not self._left:
                self.paths.append(self._folder / f"bundle.tar.xz.{len(self.paths):03}")
                self._left = self._size
            with self.paths[-1].open("ab") as file:
                written = file.write(rest[: self._left])
            self._left -= written
            rest = rest[written:]
        return len(data)


def pack(content: Path, folder: Path, part_bytes: int, preset: int) -> list[Path]:
    """The tree `content` as one tar.xz cut into parts of at most `part_bytes` in `folder`."""
    parts = _Parts(folder, part_bytes)
    with (
        lzma.LZMAFile(cast(IO[bytes], parts), "wb", preset=preset) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        for path in sorted(content.iterdir()):
            archive.add(path, arcname=path.name, filter=_anonymous)
    return parts.paths


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's files of no time: equal content gives equal parts."""
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _names(wheels: Sequence[Path]) -> list[str]:
    return [wheel.name.split("-")[0] for wheel in wheels]


def _write_rest(folder: Path, bundle: Bundle, parts: Sequence[Path], more: Sequence[str], system: bool) -> None:
    write_json(folder / "bundle.json", bundle)
    requirement = f"tsss-edge[{','.join(bundle.extras)}]" if bundle.extras else "tsss-edge"
    text = INSTALL.format(
        python=bundle.python,
        machine=bundle.machine,
        requirement=requirement,
        more="".join(f" '{name}'" for name in more),
        venv_options="--system-site-packages " if system else "",
    )
    (folder / "install.sh").write_text(text)
    (folder / "install.sh").chmod(0o755)
    (folder / "SHA256SUMS").write_text("".join(f"{sha256_file(p)}  {p.name}\n" for p in parts))
