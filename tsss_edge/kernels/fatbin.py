"""The `.cu` files -> code for one GPU: PTX that every driver compiles for itself, or machine code made beforehand.

`kernels.ptx` lies beside this module, in git and in every wheel: PTX for compute capability 7.5, which a driver of CUDA 10 or
later compiles for any GPU from Turing to Blackwell when it loads it. So no GPU host needs nvcc. Looked for in this order:
1. `kernels-HASH.fatbin` beside this module, if it has code for the GPU: machine code for all of CAPABILITIES, a choice.
   `python -m tsss_edge.kernels.fatbin FOLDER` writes it, on any machine with nvcc.
2. `kernels-HASH-smNN.fatbin` in the cache folder (XDG_CACHE_HOME, else ~/.cache, under tsss-edge/kernels).
3. `kernels.ptx`, if it is of these sources and the GPU is Turing or later.
4. nvcc on PATH or in /usr/local/cuda/bin builds the second, for this GPU alone, in about a second.
HASH is of the sources, so nothing of other sources is ever taken. A fatbin runs on drivers of the CUDA version that built it
and later ones. After a change of a `.cu` file: `python -m tsss_edge.kernels.fatbin --ptx`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tsss_edge.config import cache_folder
from tsss_edge.disk import atomic_path
from tsss_edge.errors import UnavailableError

FOLDER = Path(__file__).parent
SOURCES = (
    "kernel.h",
    "taps.h",
    "yuv.h",
    "preprocess.cu",
    "preprocess_yuv.cu",
    "upsample_argmax.cu",
    "overlay.cu",
    "overlay_yuv.cu",
    "kernels.cu",
)

# Turing, Ampere, Orin, Ada, Hopper, Blackwell, Thor: what design section 5 serves and nvcc 13 can target.
CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0")

PTX_FILE = "kernels.ptx"
PTX_CAPABILITY = "7.5"
# nvcc writes its own version of the PTX language (13.0: 9.0), which drivers of older CUDA refuse (JetPack 6 has 12.6). The
# kernels use nothing newer than 6.3, the first with compute_75; ptxas assembles it for every GPU (a test does).
PTX_LANGUAGE = "6.3"

# No contraction of a * b + c: the GPU then gives the bits that the host gives, and the kernels wait for memory anyway.
NVCC_FLAGS = ("-O3", "-std=c++17", "-fmad=false")

FATBIN_MAGIC = 0xBA55ED50
FATBIN_PTX = 1  # kind of an entry; 2 is machine code


def source_hash() -> str:
    """First 16 hex digits of the SHA-256 of all sources."""
    digest = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in SOURCES))
    return digest.hexdigest()[:16]


def find_or_build(capability: str) -> Path:
    """A file of these sources that a GPU can load, "8.7" for example.

    Raises: UnavailableError: there is none, and no nvcc or the compiler failed.
    """
    shipped = FOLDER / f"kernels-{source_hash()}.fatbin"
    if shipped.exists() and serves(shipped.read_bytes(), capability):
        return shipped
    ptx = FOLDER / PTX_FILE
    portable = _parts(capability) >= _parts(PTX_CAPABILITY) and ptx.exists() and ptx_source_hash(ptx) == source_hash()
    cached = _cached(capability, needed=not portable)
    if portable and not (cached and cached.exists()):
        return ptx
    assert cached is not None
    if not cached.exists():
        build(cached, (capability,))
    return cached


def _cached(capability: str, *, needed: bool) -> Path | None:
    """Where a GPU's own fatbin is kept; None for a user without a home, unless it is `needed`."""
    try:
        return cache_folder("kernels") / f"kernels-{source_hash()}-sm{capability.replace('.', '')}.fatbin"
    except UnavailableError:
        if needed:
            raise
        return None


def serves(fatbin: bytes, capability: str) -> bool:
    """Whether a fatbin has code for a GPU: machine code of its major version, or PTX of an older GPU.

    Layout, as nvcc 13.0 writes it: a header (magic, version, its size, size of the rest), then entries whose headers have
    the kind at 0, their own size at 4, the size of the code at 8 and the compute capability at 28.
    """
    if len(fatbin) < 16 or struct.unpack_from("<I", fatbin)[0] != FATBIN_MAGIC:
        return False
    wanted, (at, rest) = _parts(capability), struct.unpack_from("<HQ", fatbin[6:16])
    end = min(at + rest, len(fatbin) - 32)
    while at < end:
        kind, head, size, code = struct.unpack_from("<HxxIQ12xI", fatbin, at)
        has = divmod(code, 10)
        if has <= wanted and (kind == FATBIN_PTX or has[0] == wanted[0]):
            return True
        at += head + size
    return False


def ptx_source_hash(ptx: Path) -> str:
    """`source_hash` that a PTX file was made of."""
    return ptx.read_text().splitlines()[0].rpartition(" ")[2]


def build_ptx(path: Path) -> None:
    """Compile the kernels to PTX that every GPU from Turing on and every driver since CUDA 10 takes, atomically.

    Raises: UnavailableError: no nvcc, or it failed.
    """
    nvcc = _nvcc()
    with atomic_path(path) as temporary:
        _run_nvcc(nvcc, ["-ptx", f"-arch=compute_{PTX_CAPABILITY.replace('.', '')}"], temporary, "PTX")
        text = re.sub(r"(?m)^//.*\n", "", temporary.read_text()).lstrip()  # which compiler, says nothing of the code
        text = re.sub(r"(?m)^\.version .*$", f".version {PTX_LANGUAGE}", text)
        temporary.write_text(
            f"// PTX of the .cu files beside it, made by fatbin.py --ptx; sources {source_hash()}\n{text}"
        )


def build(path: Path, capabilities: Sequence[str] = CAPABILITIES) -> None:
    """Compile the kernels with nvcc for GPUs of `capabilities`, atomically.

    Raises: UnavailableError: no nvcc, it failed (with its first error), or the folder cannot be written.
    """
    nvcc = _nvcc()
    targets = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in (text.replace(".", "") for text in capabilities)]
    try:
        with atomic_path(path) as temporary:
            _run_nvcc(nvcc, ["-fatbin", *targets], temporary, ", ".join(capabilities))
    except OSError as error:
        raise UnavailableError(f"the built CUDA kernels cannot be kept in {path.parent} ({error})") from error


def _run_nvcc(nvcc: str, arguments: Sequence[str], out: Path, what: str) -> None:
    command = [nvcc, *NVCC_FLAGS, *arguments, "-o", str(out), str(FOLDER / "kernels.cu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr + done.stdout).splitlines()
        reason = next((line for line in lines if "error" in line or "fatal" in line), f"exit code {done.returncode}")
        raise UnavailableError(f"nvcc could not build the kernels for {what}: {reason}")


def _parts(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)


def find_nvcc() -> str | None:
    """The CUDA compiler on PATH, or where the toolkit puts it."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _nvcc() -> str:
    found = find_nvcc()
    if found is None:
        raise UnavailableError(
            "no built CUDA kernels for this version and no nvcc to build them; install the CUDA toolkit, or run "
            f"`python -m tsss_edge.kernels.fatbin FOLDER` where nvcc is and copy the file into {FOLDER}"
        )
    return found


def main() -> None:
    """`python -m tsss_edge.kernels.fatbin FOLDER | --ptx`: machine code for all CAPABILITIES, or `kernels.ptx` anew."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tsss_edge.kernels.fatbin FOLDER | --ptx")
    try:
        if sys.argv[1] == "--ptx":
            path = FOLDER / PTX_FILE
            build_ptx(path)
        else:
            path = Path(sys.argv[1]) / f"kernels-{source_hash()}.fatbin"
            build(path)
    except UnavailableError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
