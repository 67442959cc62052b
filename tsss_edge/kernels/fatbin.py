"""The `.cu` files -> one fatbin (machine code for several GPUs in one file), built once and kept.

Looked for in this order:
1. `kernels-HASH.fatbin` beside this module, for all of CAPABILITIES; `python -m tsss_edge.kernels.fatbin FOLDER` writes it.
2. `kernels-HASH-smNN.fatbin` in the cache folder (XDG_CACHE_HOME, else ~/.cache, under tsss-edge/kernels).
3. nvcc, on PATH or in /usr/local/cuda/bin, builds the second in about a second.
HASH is of the sources. A fatbin needs a driver of its CUDA version or later: for a Jetson, build with its own nvcc.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tsss_edge.config import cache_folder
from tsss_edge.errors import UnavailableError
from tsss_edge.files import atomic_path

FOLDER = Path(__file__).parent
SOURCES = ("kernel.h", "taps.h", "preprocess.cu", "upsample_argmax.cu", "overlay.cu", "kernels.cu")

# Turing, Ampere, Orin, Ada, Hopper, Thor, Blackwell: what design section 5 serves and nvcc 13 can target.
CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "11.0", "12.0")

# No contraction of a * b + c: the GPU then gives the bits that the host gives, and the kernels wait for memory anyway.
NVCC_FLAGS = ("-fatbin", "-O3", "-std=c++17", "-fmad=false")


def source_hash() -> str:
    """First 16 hex digits of the SHA-256 of all sources."""
    digest = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in SOURCES))
    return digest.hexdigest()[:16]


def find_or_build(capability: str) -> Path:
    """A fatbin of these sources that has code for a GPU, "8.7" for example.

    Raises: UnavailableError: there is none, and no nvcc or the compiler failed.
    """
    shipped = FOLDER / f"kernels-{source_hash()}.fatbin"
    if shipped.exists():
        return shipped
    cached = cache_folder("kernels") / f"kernels-{source_hash()}-sm{capability.replace('.', '')}.fatbin"
    if not cached.exists():
        build(cached, (capability,))
    return cached


def build(path: Path, capabilities: Sequence[str] = CAPABILITIES) -> None:
    """Compile the kernels with nvcc for GPUs of `capabilities`, atomically.

    Raises: UnavailableError: no nvcc, it failed (with its first error), or the folder cannot be written.
    """
    nvcc = _nvcc()
    targets = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in (text.replace(".", "") for text in capabilities)]
    try:
        with atomic_path(path) as temporary:
            command = [nvcc, *NVCC_FLAGS, *targets, "-o", str(temporary), str(FOLDER / "kernels.cu")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = (done.stderr + done.stdout).splitlines()
                reason = next(
                    (line for line in lines if "error" in line or "fatal" in line), f"exit code {done.returncode}"
                )
                raise UnavailableError(f"nvcc could not build the kernels for {', '.join(capabilities)}: {reason}")
    except OSError as error:
        raise UnavailableError(f"the built CUDA kernels cannot be kept in {path.parent} ({error})") from error


def _nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise UnavailableError(
            "no built CUDA kernels for this version and no nvcc to build them; install the CUDA toolkit, or run "
            f"`python -m tsss_edge.kernels.fatbin FOLDER` where nvcc is and copy the file into {FOLDER}"
        )
    return found


def main() -> None:
    """`python -m tsss_edge.kernels.fatbin FOLDER`: build for all CAPABILITIES, print the file's path."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tsss_edge.kernels.fatbin FOLDER")
    path = Path(sys.argv[1]) / f"kernels-{source_hash()}.fatbin"
    try:
        build(path)
    except UnavailableError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
