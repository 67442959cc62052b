"""The files that stages hand to each other: what they hold, how they are hashed, saved (atomically) and checked.

Every artifact says where it came from by hash, and carries the one `Preprocess` it was made for. Two artifacts whose
preprocess hashes differ never work together silently (`require_same_preprocess`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tsss_edge.errors import ArtifactError
from tsss_edge.files import read_json, sha256_bytes, sha256_file, write_bytes, write_json

if TYPE_CHECKING:
    import torch

IGNORE = 255  # label of a pixel that no loss and no metric may see (PASCAL VOC's "void")

Fit = Literal["stretch", "letterbox", "crop"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Head = Literal["logits", "labels", "both"]
Stage = Literal["lnet", "classifier", "pnet", "supervised"]


# ---------------------------------------------------------------------------------------------------------------------
# What travels with every artifact


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of our records: immutable, keyword-only, and strict about unknown fields when read from a file."""


class Placement(Struct, frozen=True):
    """Which part of a frame fills which part of the network input. All in pixels, x y w h."""

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]


class Preprocess(Struct, frozen=True):
    """The one way a picture becomes network input, shared by training, calibration, parity and the live loop.

    The network's first layer sees `value / 255 * scale` in RGB order. There is no mean subtraction, so that the
    factor folds exactly into the first convolution under zero padding. Resampling is bilinear with half-pixel centres.
    """

    size_hw: tuple[int, int] = (512, 512)
    fit: Fit = "stretch"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if any(side < 32 or side % 32 for side in self.size_hw):
            raise ValueError(f"input size {self.size_hw}: height and width must be positive multiples of 32")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"input scale {self.scale}: must be a positive number")

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON form."""
        return sha256_bytes(msgspec.json.encode(self, order="sorted"))[:16]

    def place(self, frame_hw: tuple[int, int]) -> Placement:
        """Where a frame of `frame_hw` pixels lands: `stretch` fills, `letterbox` pads with black, `crop` cuts."""
        (height, width), (rows, columns) = frame_hw, self.size_hw
        full_source, full_target = (0, 0, width, height), (0, 0, columns, rows)
        if self.fit == "letterbox":
            ratio = min(rows / height, columns / width)
            w, h = max(1, round(width * ratio)), max(1, round(height * ratio))
            return Placement(source=full_source, target=((columns - w) // 2, (rows - h) // 2, w, h))
        if self.fit == "crop":
            ratio = max(rows / height, columns / width)
            w, h = max(1, min(width, round(columns / ratio))), max(1, min(height, round(rows / ratio)))
            return Placement(source=((width - w) // 2, (height - h) // 2, w, h), target=full_target)
        return Placement(source=full_source, target=full_target)


class Classes(Struct, frozen=True):
    """The categories of a dataset, by id. With a background, id 0 is it."""

    names: tuple[str, ...]
    background: bool = True

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= IGNORE:
            raise ValueError(f"{len(self.names)} classes: expected 2 to {IGNORE} (label 255 means 'ignore')")
        if len(set(self.names)) != len(self.names):
            raise ValueError("class names must differ from each other")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def objects(self) -> tuple[int, ...]:
        """Ids of the object categories: all but the background."""
        return tuple(range(1 if self.background else 0, len(self.names)))

    def ids(self, names: tuple[str, ...] | list[str]) -> tuple[int, ...]:
        """Ids of `names`, in their order. Raises: ValueError: a name is unknown or is the background."""
        objects = {self.names[i]: i for i in self.objects}
        if unknown := [name for name in names if name not in objects]:
            raise ValueError(f"unknown categories {', '.join(unknown)}; choose from {', '.join(objects)}")
        return tuple(objects[name] for name in names)

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """One RGB colour a class: PASCAL VOC's colour map (bit-interleaved, VOC devkit `VOClabelcolormap`)."""
        return tuple(voc_color(i) for i in range(len(self.names)))


def voc_color(index: int) -> tuple[int, int, int]:
    """RGB of `index` (0-255) in the PASCAL VOC colour map."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> channel & 1) << (7 - bit)
        index >>= 3
    return channels[0], channels[1], channels[2]


class TensorSpec(Struct, frozen=True):
    """Name, dtype (NumPy's name) and shape of a network input or output. -1 marks a free batch dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def require_same_preprocess(a: Preprocess, b: Preprocess, what: str) -> None:
    """Raise ArtifactError, naming both, when two artifacts were made for different network inputs."""
    if a.hash != b.hash:
        raise ArtifactError(
            f"{what}: different preprocessing ({a} against {b}); export and build again from one checkpoint"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoint: PyTorch weights + what they mean


class CheckpointMeta(Struct, frozen=True):
    """What a checkpoint says of itself. `metrics` are percent (mIoU) or 0-1 (others), `training` the config as read."""

    stage: Stage
    arch: str
    classes: Classes
    preprocess: Preprocess
    strong: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    training: dict[str, Any] = {}
    data_hash: str = ""
    tool: str = ""


class Checkpoint(Struct, frozen=True):
    """Trained weights on disk: a `.pt` that loads with `weights_only` and never runs code."""

    path: Path
    sha256: str
    meta: CheckpointMeta

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read and check the description of a checkpoint (a file, or a run folder that holds `best.pt`).

        Raises: ArtifactError: missing, truncated, not ours.
        """
        path = path / "best.pt" if path.is_dir() else path
        content = _load_torch(path)
        try:
            meta = msgspec.json.decode(content["meta"], type=CheckpointMeta)
        except (KeyError, TypeError, msgspec.DecodeError) as error:
            raise ArtifactError(
                f"{path}: not a tsss-edge checkpoint ({error}); train one with `tsss-edge train`"
            ) from error
        return cls(path=path, sha256=sha256_file(path), meta=meta)

    @classmethod
    def save(
        cls, path: Path, meta: CheckpointMeta, state: dict[str, torch.Tensor], resume: dict[str, Any] | None = None
    ) -> Checkpoint:
        """Write weights `state` and, for `last.pt`, what is needed to go on training (`resume`), atomically."""
        import io

        import torch

        buffer = io.BytesIO()  # into memory first: torch writes the file's name into the archive otherwise
        torch.save({"meta": msgspec.json.encode(meta).decode(), "state": state, "resume": resume or {}}, buffer)
        write_bytes(path, buffer.getvalue())
        return cls(path=path, sha256=sha256_bytes(buffer.getvalue()), meta=meta)

    def state(self) -> dict[str, torch.Tensor]:
        """The weights, on the CPU. Raises: ArtifactError: a weight is NaN or infinite."""
        state: dict[str, torch.Tensor] = _load_torch(self.path)["state"]
        for name, tensor in state.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ArtifactError(
                    f"{self.path}: weight {name} holds NaN or infinity; use an earlier checkpoint or train again"
                )
        return state

    def resume(self) -> dict[str, Any]:
        """Optimizer, scheduler and counters of `last.pt`. Raises: ArtifactError: the file holds none."""
        resume: dict[str, Any] = _load_torch(self.path).get("resume", {})
        if not resume:
            raise ArtifactError(f"{self.path}: holds weights only, training cannot go on from it; use last.pt")
        return resume


def read_torch(path: Path) -> tuple[str, dict[str, Any]]:
    """SHA-256 and content of a file of `torch.save`. Raises: ArtifactError: missing, or not readable as tensors."""
    content = _load_torch(path)
    return sha256_file(path), content


def _load_torch(path: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such checkpoint") from error
    except Exception as error:  # torch raises many kinds for a damaged zip; all mean the same to a user
        raise ArtifactError(f"{path}: not a readable checkpoint (truncated, or not made by tsss-edge)") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: not a tsss-edge checkpoint; train one with `tsss-edge train`")
    return content


# ---------------------------------------------------------------------------------------------------------------------
# ONNX model: one self-contained file, its description inside it


class CalibrationRecord(Struct, frozen=True):
    """How INT8 ranges were found, bound by hash to images and graph."""

    method: str
    images: int
    image_list_sha256: str  # of the sorted per-image SHA-256 values, one a line
    image_sha256: tuple[str, ...]  # of each image file, for the leak check
    split: str
    seed: int
    onnx_sha256: str  # the float graph the ranges were measured on
    random: bool = False
    peaks: dict[str, float] = {}  # largest magnitude of each measured tensor, by which `parity` replays the calibration


class OnnxMeta(Struct, frozen=True):
    """What an exported graph says of itself; stored in the file's own `metadata_props` under `tsss_edge`."""

    arch: str
    classes: Classes
    preprocess: Preprocess
    head: Head
    objectness: bool
    precision: Precision
    checkpoint_sha256: str
    calibration: CalibrationRecord | None = None
    float_nodes: tuple[str, ...] = ()  # nodes kept in float by range scan or search, with the reason in `inspect`
    tool: str = ""


ONNX_KEY = "tsss_edge"


class OnnxModel(Struct, frozen=True):
    """An exported graph on disk. Input `image`: uint8 (N,H,W,3) RGB. Outputs: `logits`, `labels`, `objectness`."""

    path: Path
    sha256: str
    meta: OnnxMeta

    @classmethod
    def load(cls, path: Path) -> OnnxModel:
        """Read the description inside an ONNX file. Raises: ArtifactError: missing, damaged, not exported by us."""
        import onnx

        if not path.is_file():
            raise ArtifactError(f"{path}: no such ONNX file; make one with `tsss-edge export`")
        try:
            props = {p.key: p.value for p in onnx.load(path).metadata_props}
        except Exception as error:  # protobuf's DecodeError and friends
            raise ArtifactError(f"{path}: not a readable ONNX file (truncated?)") from error
        if ONNX_KEY not in props:
            raise ArtifactError(f"{path}: not exported by tsss-edge (no description inside); use `tsss-edge export`")
        try:
            meta = msgspec.json.decode(props[ONNX_KEY], type=OnnxMeta)
        except msgspec.DecodeError as error:
            raise ArtifactError(f"{path}: its description is damaged: {error}; export again") from error
        return cls(path=path, sha256=sha256_file(path), meta=meta)

    @classmethod
    def save(cls, path: Path, graph: Any, meta: OnnxMeta) -> OnnxModel:
        """Write `graph` (onnx.ModelProto) with `meta` inside it, atomically."""
        import onnx

        del graph.metadata_props[:]
        onnx.helper.set_model_props(graph, {ONNX_KEY: msgspec.json.encode(meta).decode()})
        data = graph.SerializeToString(deterministic=True)
        write_bytes(path, data)
        return cls(path=path, sha256=sha256_bytes(data), meta=meta)


# ---------------------------------------------------------------------------------------------------------------------
# Engine: the plain file that stock tools load + a record beside it


class LatencyRecord(Struct, frozen=True):
    """Network-only latency in milliseconds, as `bench` measures it."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    runs: int
    threads: int | None = None


class ParityRecord(Struct, frozen=True):
    """Verdict of the accuracy gate for exactly this engine. mIoU in percent, agreement in 0-1."""

    passed: bool
    miou_reference: float
    miou_engine: float
    miou_drop: float
    pixel_agreement: float
    boundary_agreement: float
    images: int
    max_drop: float
    data_sha256: str
    leak: int = 0  # evaluation images that were also calibration images


class EngineRecord(Struct, frozen=True):
    """`NAME.json` beside `NAME.engine` or `NAME.xml`: what the engine is and how it may be trusted."""

    backend: Literal["openvino", "tensorrt", "tensorrt-rtx"]
    files: dict[str, str]  # file name -> SHA-256
    target: str
    onnx_sha256: str
    checkpoint_sha256: str
    arch: str
    classes: Classes
    preprocess: Preprocess
    head: Head
    objectness: bool
    precision: Precision  # asked
    realised: dict[str, int] = {}  # layers by the precision they really run in, where the back end tells
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    calibration: CalibrationRecord | None = None
    device: str = ""
    versions: dict[str, str] = {}
    flags: dict[str, Any] = {}
    latency: LatencyRecord | None = None
    parity: ParityRecord | None = None
    created: str = ""
    tool: str = ""


class Engine(Struct, frozen=True):
    """An engine on disk and its record. `path` is the `.engine` or `.xml` file."""

    path: Path
    record: EngineRecord

    @staticmethod
    def record_path(path: Path) -> Path:
        """`fused.int8.xml` -> `fused.int8.json`."""
        return path.with_suffix(".json")

    @classmethod
    def load(cls, path: Path, *, trust: bool = False) -> Engine:
        """Read the record and check every file's hash against it (an engine is code; `trust` skips the hashes).

        Raises: ArtifactError: engine or record missing, damaged, or the hash differs.
        """
        if not path.is_file():
            raise ArtifactError(f"{path}: no such engine; make one with `tsss-edge build-engine`")
        record_path = cls.record_path(path)
        if not record_path.is_file():
            raise ArtifactError(
                f"{path}: no record {record_path.name} beside it; build it with `tsss-edge build-engine`"
            )
        record = read_json(record_path, EngineRecord)
        if path.name not in record.files:
            raise ArtifactError(
                f"{record_path}: describes {', '.join(record.files)}, not {path.name}; build the engine again"
            )
        for name, expected in record.files.items() if not trust else ():
            file = path.parent / name
            if not file.is_file():
                raise ArtifactError(f"{file}: named in {record_path.name} but missing; build the engine again")
            if sha256_file(file) != expected:
                raise ArtifactError(
                    f"{file}: its hash is not the one in {record_path.name} (changed or damaged after the build); "
                    "build it again (`eval` and `bench` take --trust, for those who made the change)"
                )
        return cls(path=path, record=record)

    def with_record(self, **changes: Any) -> Engine:
        """The same engine with fields of its record replaced, written back atomically."""
        record = msgspec.structs.replace(self.record, **changes)
        write_json(self.record_path(self.path), record)
        return Engine(path=self.path, record=record)
