"""A TensorRT plan's first bytes -> what built it and for which GPUs, and one sentence for everything that does not fit.

Layout of the readable part (sampleEngines.cpp of NVIDIA/TensorRT, and plans of TensorRT-RTX 1.7.1 looked at byte by byte):
uint32 tag, uint32 serialization version, ..., bytes 24-27 version (major, minor, patch, build). TensorRT-RTX has another
tag, the file's length as uint64 at 16, the tag again at 28 and a bit mask of compute capabilities at 32. Plans of TensorRT 8
have a third tag, "ptrt", and no version that can be read (github.com/NVIDIA/TensorRT/issues/3073): the record has it.
Nothing here needs TensorRT or CUDA. A right header says nothing about trust: that is the record's hash.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from tsss_edge.artifacts import EngineRecord, Struct
from tsss_edge.backends.cuda.gpus import Gpu
from tsss_edge.backends.trt_api import Flavour, Trt, parse_version
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import write_bytes
from tsss_edge.machine import RTX_CAPABILITIES

TENSORRT_8 = 0x74727470
TAGS: dict[int, Flavour] = {0x74727466: "tensorrt", TENSORRT_8: "tensorrt", 0x74727476: "tensorrt-rtx"}
NAMES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
RTX_HEADER_BYTES = 36
RTX_BITS = (*RTX_CAPABILITIES, "later")  # of the mask (plans built for each one looked at)
OTHER_KINDS = {
    b"PK\x03\x04": "a zip (a PyTorch checkpoint?)",
    b"<?xm": "an XML file (OpenVINO?)",
    b"\x7fELF": "a program",
}


class PlanHeader(Struct, frozen=True):
    """What the header says. `compute_capabilities` and `length` are known for TensorRT-RTX only (empty, None).

    `serialization` and `version` are None in a plan of TensorRT 8.
    """

    flavour: Flavour
    serialization: int | None
    version: tuple[int, int, int, int] | None
    compute_capabilities: tuple[str, ...] = ()
    length: int | None = None

    def __str__(self) -> str:
        return f"{NAMES[self.flavour]} {'.'.join(map(str, self.version)) if self.version else '8'}"


def read_header(path: Path) -> PlanHeader:
    """Read the header of a plan. Raises: ArtifactError: truncated, another kind of file, or with a foreign prefix."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(RTX_HEADER_BYTES)
    if size < RTX_HEADER_BYTES:
        raise ArtifactError(f"{path}: {size} bytes, too short for a TensorRT plan (truncated?); build it again")
    tag, serialization = struct.unpack_from("<II", start)
    if tag not in TAGS:
        raise ArtifactError(_foreign(path, start))
    if tag == TENSORRT_8:
        return PlanHeader(flavour="tensorrt", serialization=None, version=None)
    header = PlanHeader(flavour=TAGS[tag], serialization=serialization, version=_version(start))
    return _rtx_part(path, header, start, size) if header.flavour == "tensorrt-rtx" else header


def _version(start: bytes) -> tuple[int, int, int, int]:
    major, minor, patch, build = start[24:28]
    return major, minor, patch, build


def _rtx_part(path: Path, header: PlanHeader, start: bytes, size: int) -> PlanHeader:
    (length,) = struct.unpack_from("<Q", start, 16)
    if length != size:
        raise ArtifactError(
            f"{path}: its header promises {length} bytes, the file has {size} (truncated or changed); build it again"
        )
    (mask,) = struct.unpack_from("<I", start, 32)
    served = tuple(text for bit, text in enumerate(RTX_BITS) if mask >> bit & 1)
    return msgspec.structs.replace(header, compute_capabilities=served, length=length)


def _foreign(path: Path, start: bytes) -> str:
    length = foreign_prefix(path)
    if length is not None:
        return (
            f"{path}: {length} bytes of JSON stand before the plan, as Ultralytics writes it; "
            f"`tsss-edge inspect {path} --strip OUT.engine` writes the plan alone"
        )
    kind = OTHER_KINDS.get(start[:4], f"it starts with {start[:4].hex()}")
    return f"{path}: not a TensorRT plan ({kind}); build it with `tsss-edge build-engine`"


def foreign_prefix(path: Path) -> int | None:
    """Bytes before the plan when a length (uint32) and JSON stand there, as Ultralytics writes it; else None."""
    with path.open("rb") as file:
        start = file.read(4)
        length = int.from_bytes(start, "little")
        if len(start) < 4 or length > 1 << 20:
            return None
        text, tag = file.read(length), file.read(4)
    known = int.from_bytes(tag, "little") in TAGS
    return 4 + length if known and text[:1] == b"{" else None


def strip_prefix(path: Path, out: Path) -> PlanHeader:
    """Write the plan without its foreign prefix to `out`. Raises: ArtifactError: there is none."""
    length = foreign_prefix(path)
    if length is None:
        raise ArtifactError(f"{path}: no foreign prefix in front of a plan; nothing to strip")
    write_bytes(out, path.read_bytes()[length:])
    return read_header(out)


def require_record(path: Path, header: PlanHeader, record: EngineRecord) -> None:
    """Raise ArtifactError when header and record tell different stories."""
    if record.backend != header.flavour:
        raise ArtifactError(f"{path}: is a plan of {header}, its record says {record.backend}; build it again")
    recorded = record.versions.get(record.backend, "")
    same = recorded.split(".")[:3] == [str(n) for n in header.version[:3]] if header.version else recorded[:2] == "8."
    if recorded and not same:
        raise ArtifactError(f"{path}: is a plan of {header}, its record says {recorded}; build it again")


def require_runnable(path: Path, header: PlanHeader, record: EngineRecord, trt: Trt, gpu: Gpu) -> None:
    """Raise UnavailableError when this TensorRT or this GPU cannot run the plan, before CUDA is asked."""
    rebuild = f"`tsss-edge build-engine {path}`"
    built = header.version or parse_version(record.versions.get(header.flavour, ""))
    if built and not _runs_version(trt.version, tuple(built), compatible=record.build.target.version_compatible):
        by = f"{NAMES[header.flavour]} {'.'.join(map(str, built))}"
        raise UnavailableError(f"{path}: built by {by}, this machine has {trt}; build it here with {rebuild}")
    served = header.compute_capabilities
    later = "later" in served and float(gpu.compute_capability) > float(RTX_BITS[-2])
    if served and gpu.compute_capability not in served and not later:
        raise UnavailableError(
            f"{path}: made for compute capability {', '.join(served)}, this GPU ({gpu.name}) has "
            f"{gpu.compute_capability}; add it to the target's compute_capabilities, or use another target"
        )
    built_with = record.versions.get("driver_cuda", "0")
    if int(gpu.driver_cuda.split(".")[0]) < int(built_with.split(".")[0]):
        raise UnavailableError(
            f"{path}: built under a driver that serves CUDA {built_with}, this one serves {gpu.driver_cuda}; "
            f"install a newer driver, or build it here with {rebuild}"
        )
    if header.flavour == "tensorrt" and record.device and not _runs_gpu(record, gpu):
        raise UnavailableError(
            f"{path}: built for {record.device}, this GPU is {gpu.name}; build it here with {rebuild}"
        )


def _runs_version(here: tuple[int, ...], built: tuple[int, ...], *, compatible: bool) -> bool:
    """The same version; with a version-compatible plan a later one of the same major number."""
    return here[:3] == built[:3] or (compatible and here[0] == built[0] and here >= built[:3])


def _runs_gpu(record: EngineRecord, gpu: Gpu) -> bool:
    """The same model; with a hardware-compatible plan Ampere and later, or the same compute capability."""
    level = record.build.target.hardware_compatible
    if level == "ampere_plus":
        return int(gpu.compute_capability.split(".")[0]) >= 8
    if level == "same_compute_capability":
        return f"compute capability {gpu.compute_capability})" in record.device
    return f"{gpu.name} (" in record.device
