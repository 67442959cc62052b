"""Everything a host without a network needs -> one folder of parts and an `install.sh` that joins and installs them.

Wheels are chosen by platform tag and Python version of the host, not of this machine. They are stored uncompressed inside one
xz stream, because a wheel's own deflate hides from xz what it could save (TensorRT-RTX: 95 MB as a wheel, 64 MiB this way).
pip downloads the wheels of others and builds ours.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import lzma
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import tsss_edge
from tsss_edge.artifacts import Struct
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.build import folder_beside
from tsss_edge.files import sha256_file, write_json

MIB = 1 << 20
DISTRIBUTION = "tsss-edge"
# pip takes the newest tag it finds; older tags run on newer systems.
PLATFORMS: dict[str, tuple[str, ...]] = {  # "linux": a wheel that a user built, such as PyCUDA's
    machine: tuple(
        f"{tag}_{machine}" for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "linux")
    )
    for machine in ("x86_64", "aarch64")
}
NUMPY_1 = "numpy>=1.26,<2"
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
"$VENV"/bin/python -m pip install --no-index --find-links wheels {requirement}{more}
echo "installed: $(pwd)/$VENV/bin/tsss-edge"
"""

PIPS_OWN = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")  # written by pip at installation

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
    for several in (wheels, files):
        if twice := [name for name, count in Counter(file.name for file in several).items() if count > 1]:
            raise ArtifactError(f"two files named {twice[0]}; the bundle has one folder for all, rename one of them")
    with folder_beside(out) as staging:
        content, folder = staging / "content", staging / "bundle"
        (content / "wheels").mkdir(parents=True)
        folder.mkdir()
        for file in (*wheels, *files):
            _copy(file, content / ("wheels" if file in wheels else "files") / file.name)
        ours = write_wheel(content / "wheels", kernels=kernels)
        minor = int(python.split(".")[1])
        old = OLD_PYTHON_NEEDS if minor < 11 else ()
        given = [str(ours.parent / wheel.name) for wheel in wheels]  # what they need is fetched too
        wanted = [f"{ours}[{','.join(extras)}]" if extras else str(ours), *given, *requirements, *old]
        fetch, options = download or run_pip, pip_options(ours.parent, python, machine)
        fetch([*options, *wanted])
        # A Jetson's OpenCV wants NumPy 1, which pip does not see: it read the markers of this machine. No Jetson has Python 3.13.
        if machine == "aarch64" and minor < 13:
            fetch([*options, "--no-deps", NUMPY_1])
        packed = sorted(ours.parent.glob("*.whl"))
        sums = {wheel.name: sha256_file(wheel) for wheel in packed}
        for wheel in packed:
            store_uncompressed(wheel)
        parts = pack(content, folder, part_mib * MIB, preset)
        bundle = Bundle(
            python=python,
            machine=machine,
            extras=tuple(extras),
            wheels=sums,
            files=tuple(file.name for file in files),
            parts=tuple(p.name for p in parts),
            bytes=sum(p.stat().st_size for p in parts),
        )
        more = [*requirements, *(wheel.name.split("-")[0] for wheel in wheels)]
        _write_rest(folder, bundle, parts, more, system_packages)
        folder.rename(out)
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


def write_wheel(folder: Path, *, kernels: bool = False) -> Path:
    """Write our own wheel, `tsss_edge-VERSION-py3-none-any.whl`, into `folder`: pip builds it from a checkout; an installed
    package is packed again from the files that its RECORD names.

    Args:   kernels: compile the CUDA kernels (needs nvcc) and put them inside.
    Raises: UnavailableError: pip cannot build it, neither checkout nor installation, or no nvcc.
    """
    checkout, path = Path(tsss_edge.__file__).parents[1], folder / f"tsss_edge-{tsss_edge.__version__}-py3-none-any.whl"
    if (checkout / "pyproject.toml").is_file():
        here = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
        run_pip(["wheel", "--quiet", "--no-deps", *here, "--wheel-dir", str(folder), str(checkout)])
    else:
        _pack_installed(path)
    if kernels:
        from tsss_edge.kernels import fatbin

        built = folder / f"kernels-{fatbin.source_hash()}.fatbin"
        fatbin.build(built)
        with zipfile.ZipFile(path, "a") as archive:
            archive.write(built, f"tsss_edge/kernels/{built.name}")
        built.unlink()
    return path


def _pack_installed(path: Path) -> None:
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError(
            f"{DISTRIBUTION} is neither installed nor a checkout here; run `pip install .`"
        ) from error
    ours = [f for f in files if ".." not in f.parts and f.suffix != ".pyc" and f.name not in PIPS_OWN]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in ours:
            archive.write(str(file.locate()), str(file))
        rows = [f"{f},{f'{f.hash.mode}={f.hash.value}' if f.hash else ''},{f.size or ''}" for f in ours]
        info = next(f.parent for f in ours if f.name == "WHEEL")
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")


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
        raise UnavailableError(f"pip {arguments[0]} failed: {lines[-1] if lines else done.stderr.strip()}")


def store_uncompressed(wheel: Path) -> None:
    """Rewrite a wheel with its members stored, so that xz sees their content. Installs exactly as before."""
    packed = wheel.with_suffix(".packed")
    wheel.replace(packed)
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            info = zipfile.ZipInfo(member.filename, member.date_time)
            info.external_attr = member.external_attr
            with source.open(member) as reader, target.open(info, "w", force_zip64=True) as writer:
                shutil.copyfileobj(reader, writer, MIB)
    packed.unlink()


def pack(content: Path, folder: Path, part_bytes: int, preset: int) -> list[Path]:
    """The tree `content` as one tar.xz cut into parts of at most `part_bytes` in `folder`."""
    whole = content.with_name("bundle.tar.xz")
    parts: list[Path] = []
    with lzma.open(whole, "wb", preset=preset) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for path in sorted(content.iterdir()):
            archive.add(path, arcname=path.name, filter=_anonymous)
    digits = max(3, len(str(whole.stat().st_size // part_bytes)))  # the shell joins them in the order of their names
    with whole.open("rb") as file:
        while data := file.read(part_bytes):
            parts.append(folder / f"{whole.name}.{len(parts):0{digits}}")
            parts[-1].write_bytes(data)
    return parts


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


def _write_rest(folder: Path, bundle: Bundle, parts: Sequence[Path], more: Sequence[str], system: bool) -> None:
    write_json(folder / "bundle.json", bundle)
    requirement = f"tsss-edge[{','.join(bundle.extras)}]" if bundle.extras else "tsss-edge"
    text = INSTALL.format(
        python=bundle.python,
        machine=bundle.machine,
        requirement=shlex.quote(requirement),
        more="".join(f" {shlex.quote(name)}" for name in more),
        venv_options="--system-site-packages " if system else "",
    )
    (folder / "install.sh").write_text(text)
    (folder / "install.sh").chmod(0o755)
    (folder / "SHA256SUMS").write_text("".join(f"{sha256_file(p)}  {p.name}\n" for p in parts))
