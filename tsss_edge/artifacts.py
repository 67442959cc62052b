"""The files that stages hand to each other: what they hold, how they are hashed, saved (atomically) and checked.

Every artifact says where it came from by hash, and carries the one `Preprocess` it was made for. Two artifacts whose
preprocess hashes differ never work together silently (`require_same_preprocess`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from tsss_edge.disk import finish_swap
from tsss_edge.errors import ArtifactError
from tsss_edge.files import decode_json, edge, parse_json, read_bytes, sha256_bytes, sha256_file, write_bytes
from tsss_edge.seals import (
    ONNX_DIGEST,
    ONNX_SEAL,
    ZIP_SEAL,
    open_seal,
    read_sealed,
    require_plain_zip,
    seal_onnx,
    seal_zip,
    tell_unsealed,
    write_sealed,
)

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

LARGEST_SIDE = 1 << 14  # pixels of a network input: beyond, a description is damaged and would take all memory
LARGEST_TENSOR = 1 << 32  # values of an input or output, likewise
IGNORE = 255  # label of a pixel that no loss and no metric may see (PASCAL VOC's "void")

Fit = Literal["stretch", "letterbox", "crop"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Head = Literal["logits", "labels", "both"]
Stage = Literal["lnet", "classifier", "pnet", "supervised", "distilled"]
BackendName = Literal["openvino", "tensorrt", "tensorrt-rtx"]


# ---------------------------------------------------------------------------------------------------------------------
# What travels with every artifact


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of our records: immutable, keyword-only, and strict about unknown fields when read from a file."""


class Placement(Struct, frozen=True):
    """Which part of a frame fills which part of the network input. All in pixels, x y w h.

    `input_hw` is the network input: with the grid of an output it gives the stride. None: the stride is 8, as ours is.
    """

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    input_hw: tuple[int, int] | None = None


class Preprocess(Struct, frozen=True):
    """The one way a picture becomes network input, shared by training, calibration, parity and the live loop.

    The network's first layer sees `value / 255 * scale` in RGB order. There is no mean subtraction, so that the
    factor folds exactly into the first convolution under zero padding. Resampling is bilinear with half-pixel centres.
    """

    size_hw: tuple[int, int] = (512, 512)
    fit: Fit = "stretch"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= min(self.size_hw) <= max(self.size_hw) <= LARGEST_SIDE:
            raise ValueError(f"input size {self.size_hw}: expected height and width of 1 to {LARGEST_SIDE} pixels")
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
            return Placement(
                source=full_source, target=((columns - w) // 2, (rows - h) // 2, w, h), input_hw=self.size_hw
            )
        if self.fit == "crop":
            ratio = max(rows / height, columns / width)
            w, h = max(1, min(width, round(columns / ratio))), max(1, min(height, round(rows / ratio)))
            return Placement(
                source=((width - w) // 2, (height - h) // 2, w, h), target=full_target, input_hw=self.size_hw
            )
        return Placement(source=full_source, target=full_target, input_hw=self.size_hw)


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
        """One RGB colour a class, for looking at: bright, none a green of plants. A background is black and never drawn.

        Index PNGs keep PASCAL VOC's colours (`voc_color`), which many tools know.
        """
        colours = tuple(view_color(i) for i in range(len(self.objects)))
        return ((0, 0, 0), *colours) if self.background else colours


# Chosen step by step, each as far as possible (CIELAB) from those before, from foliage, asphalt and black. Ours.
VIEW_COLOURS = (
    *((255, 68, 68), (51, 153, 255), (255, 221, 0), (221, 85, 255), (0, 255, 238), (255, 153, 204), (204, 119, 0)),
    *((255, 0, 153), (0, 204, 255), (255, 170, 136), (170, 119, 221), (238, 85, 119), (255, 102, 0), (255, 102, 221)),
    *((221, 187, 255), (102, 119, 255), (221, 102, 68), (255, 0, 221), (238, 170, 0), (136, 187, 255), (221, 85, 153)),
    *(
        (68, 238, 255),
        (221, 119, 119),
        (136, 136, 204),
        (238, 0, 255),
        (255, 153, 255),
        (255, 153, 85),
        (187, 119, 170),
    ),
)


def view_color(index: int) -> tuple[int, int, int]:
    """RGB of the `index`-th object class (0-254) on a screen. From the 29th on: VOC's colours, made lighter."""
    if index < len(VIEW_COLOURS):
        return VIEW_COLOURS[index]
    red, green, blue = (127 + value // 2 for value in voc_color(index))
    return red, green, blue


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

    def __post_init__(self) -> None:
        if min(self.shape, default=0) < -1 or math.prod(abs(side) for side in self.shape) > LARGEST_TENSOR:
            raise ValueError(f"tensor {self.name}: {self.shape} is no shape of a network's input or output")


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
    format: int = 2
    strong: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    training: dict[str, Any] = {}
    data_hash: str = ""
    parent: str = ""  # SHA-256 of the checkpoint that this one was adapted from
    tool: str = ""


class Checkpoint(Struct, frozen=True, dict=True):
    """Trained weights on disk: a `.pt` that loads with `weights_only` and never runs code.

    `load` reads the file once and keeps what it holds; a copy in another process reads it again when asked.
    """

    path: Path
    sha256: str
    meta: CheckpointMeta

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint: a file, or a run folder that holds `best.pt`.

        Raises: ArtifactError: missing, truncated, not ours, of another format.
        """
        path = path / "best.pt" if path.is_dir() else path
        sha256, content = read_torch(path)
        if not isinstance(meta := content.get("meta"), str):
            raise ArtifactError(f"{path}: not a tsss-edge checkpoint; train one with `tsss-edge train`")
        described = decode_json(meta, CheckpointMeta, path, "train again with `tsss-edge train`")
        checkpoint = cls(path=path, sha256=sha256, meta=described)
        checkpoint.__dict__["_content"] = content
        return checkpoint

    @classmethod
    def save(
        cls, path: Path, meta: CheckpointMeta, state: dict[str, torch.Tensor], resume: dict[str, Any] | None = None
    ) -> Checkpoint:
        """Write weights `state` and, for `last.pt`, what is needed to go on training (`resume`), atomically."""
        import io

        import torch

        buffer = io.BytesIO()  # into memory first: torch writes the file's name into the archive otherwise
        torch.save({"meta": msgspec.json.encode(meta).decode(), "state": state, "resume": resume or {}}, buffer)
        data, sha256 = seal_zip(buffer.getvalue())
        write_bytes(path, data)
        return cls(path=path, sha256=sha256, meta=meta)

    def state(self) -> dict[str, torch.Tensor]:
        """The weights, on the CPU; do not change them. Raises: ArtifactError: a weight is NaN or infinite."""
        state: dict[str, torch.Tensor] = self._content.get("state", {})
        if not isinstance(state, dict) or not all(hasattr(tensor, "is_floating_point") for tensor in state.values()):
            raise ArtifactError(f"{self.path}: holds no weights; use an earlier checkpoint or train again")
        for name, tensor in state.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ArtifactError(
                    f"{self.path}: weight {name} holds NaN or infinity; use an earlier checkpoint or train again"
                )
        return dict(state)

    def resume(self) -> dict[str, Any]:
        """A copy of the optimizer, scheduler and counters of `last.pt`. Raises: ArtifactError: the file holds none."""
        import copy

        resume: dict[str, Any] = self._content.get("resume", {})
        if not resume or not isinstance(resume, dict):
            raise ArtifactError(f"{self.path}: holds weights only, training cannot go on from it; use last.pt")
        return copy.deepcopy(resume)  # an optimizer goes on with the very tensors that it is given

    @cached_property
    def _content(self) -> dict[str, Any]:
        sha256, content = read_torch(self.path)
        require_unchanged(self.path, sha256, self.sha256)
        return content


def read_torch(path: Path) -> tuple[str, dict[str, Any]]:
    """A file of tensors, read once -> (its SHA-256, what it holds).

    Raises: ArtifactError: missing, truncated, not a dict, or its bytes are not those that we wrote.
    """
    import io

    import torch

    data = read_bytes(path, "checkpoint")
    sha256, sealed = open_seal(path, data, ZIP_SEAL, "use a copy of it, or train again")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged zip; all mean the same to a user
        raise ArtifactError(f"{path}: not a readable checkpoint (truncated, or not made by tsss-edge)") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: not a tsss-edge checkpoint; train one with `tsss-edge train`")
    if not sealed and isinstance(content.get("meta"), str):  # of foreign weights, as an encoder's, nothing is known
        require_plain_zip(path, data, "use a copy of it, or train again")
        tell_unsealed(path)
    return sha256, content


def require_unchanged(path: Path, found: str, expected: str) -> None:
    """Raise ArtifactError when a file is not the one that was loaded before (both SHA-256)."""
    if found != expected:
        raise ArtifactError(f"{path}: changed since it was read; run the command again")


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
    onnx: str = ""  # its name; it lies beside the INT8 graph
    random: bool = False
    peaks: dict[str, float] = {}  # largest magnitude of each measured tensor, by which `parity` replays the calibration
    others: dict[str, float] = {}  # the same of the float tensors that never get a pair, on some of the pictures
    pairs: Literal["signed", "unsigned"] = "signed"  # unsigned: for ONNX Runtime alone (`ort_pairs.py`)
    weight_bits: int = 8  # 7: weights from -63 to 63, for CPUs whose INT8 kernels add two products in 16 bits
    bias_correction: bool = False  # whether biases were moved by what rounding shifts (`calib/bias.py`)


class ImportRecord(Struct, frozen=True):
    """Where an imported graph came from: the file, what its network was trained on, and what was found in it.

    The network saw `(value * scale - mean) / std` by channel, in the order of `colors`.
    """

    source: str  # file name
    source_sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float
    colors: Literal["rgb", "bgr"]
    layout: Literal["nchw", "nhwc"]
    found: tuple[str, ...]  # sentences: the output, what was left out, what was folded


class OnnxMeta(Struct, frozen=True):
    """What an exported graph says of itself; stored in the file's own `metadata_props` under `tsss_edge`.

    Engine records hold it too: raise their format number together with this one.
    """

    arch: str
    classes: Classes
    preprocess: Preprocess
    head: Head
    objectness: bool
    precision: Precision
    checkpoint_sha256: str
    format: int = 2
    calibration: CalibrationRecord | None = None
    float_nodes: tuple[str, ...] = ()  # nodes kept in float by range scan or search, with the reason in `inspect`
    # Height and width of logits, or of labels where they are all; None: ours, stride 8 and labels at full size.
    grid_hw: tuple[int, int] | None = None
    imported: ImportRecord | None = None  # of a network not trained here; `checkpoint_sha256` is its file's then
    parent: str = ""  # SHA-256 of the checkpoint that its own was adapted from
    tool: str = ""


ONNX_KEY = "tsss_edge"


class OnnxModel(Struct, frozen=True, dict=True):
    """An exported graph on disk. Input `image`: uint8 (N,H,W,3) RGB. Outputs: `logits`, `labels`, `objectness`.

    `load` reads and parses the file once and `save` keeps what it wrote: both give `graph` for nothing.
    """

    path: Path
    sha256: str
    meta: OnnxMeta

    @classmethod
    def load(cls, path: Path) -> OnnxModel:
        """Read an ONNX file. Raises: ArtifactError: missing, damaged, not exported by us, of another format."""
        if not path.is_file():
            raise ArtifactError(f"{path}: no such ONNX file; make one with `tsss-edge export`")
        return cls._parsed(path, read_bytes(path, "ONNX file"))

    @classmethod
    def find(cls, name: str, sha256: str, folders: Iterable[Path]) -> OnnxModel | None:
        """The graph of this name and hash in the first of `folders` that has it; other files are not parsed."""
        for path in (folder / name for folder in dict.fromkeys(folders) if name):
            if path.is_file() and sha256_bytes(data := path.read_bytes()) == sha256:
                return cls._parsed(path, data, sha256)
        return None

    @classmethod
    def _parsed(cls, path: Path, data: bytes, sha256: str = "") -> OnnxModel:
        import onnx

        with edge(path, "ONNX file", "it may be truncated; export it again"):
            graph = onnx.load_model_from_string(data)
        props = {p.key: p.value for p in graph.metadata_props}
        if ONNX_KEY not in props:
            raise ArtifactError(f"{path}: not exported by tsss-edge (no description inside); use `tsss-edge export`")
        meta = decode_json(props[ONNX_KEY], OnnxMeta, path, "export it again with `tsss-edge export`")
        found, sealed = open_seal(path, data, ONNX_SEAL, "export it again with `tsss-edge export`")
        if not sealed and ONNX_DIGEST in props:
            raise ArtifactError(f"{path}: was written again by another tool; export it again with `tsss-edge export`")
        if not sealed:
            tell_unsealed(path)
        return cls(path=path, sha256=sha256 or found, meta=meta)._with_graph(graph)

    @classmethod
    def save(cls, path: Path, graph: ModelProto, meta: OnnxMeta) -> OnnxModel:
        """Write `graph` with `meta` inside it, atomically, and keep it: do not change it afterwards."""
        import onnx

        del graph.metadata_props[:]
        onnx.helper.set_model_props(graph, {ONNX_KEY: msgspec.json.encode(meta).decode()})
        data, digest, sha256 = seal_onnx(graph.SerializeToString(deterministic=True))
        graph.metadata_props.add(key=ONNX_DIGEST, value=digest)
        write_bytes(path, data)
        return cls(path=path, sha256=sha256, meta=meta)._with_graph(graph)

    def moved(self, path: Path) -> OnnxModel:
        """The same graph, whose file now lies at `path` (the caller has moved or copied it)."""
        return msgspec.structs.replace(self, path=path)._with_graph(self.graph)

    @cached_property
    def graph(self) -> ModelProto:
        """The parsed graph, shared by all who hold this model: do not change it."""
        again = OnnxModel.load(self.path)
        require_unchanged(self.path, again.sha256, self.sha256)
        return again.graph

    def _with_graph(self, graph: ModelProto) -> OnnxModel:
        self.__dict__["graph"] = graph
        return self


# ---------------------------------------------------------------------------------------------------------------------
# Engine: the plain file that stock tools load + a record beside it


class LatencyRecord(Struct, frozen=True):
    """Network-only latency in milliseconds, as `bench` measures it."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    runs: int
    threads: int | None = None
    power_mode: str = ""  # of a Jetson (nvpmodel); figures of different modes must not be compared


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
    problems: tuple[str, ...] = ()  # why it did not pass; empty in records of older versions too


class FieldProfile(Struct, frozen=True):
    """What the engine said of the evaluation set, without its truth: what a live stream is compared with (`field/`)."""

    pictures: int
    quantiles: dict[str, tuple[float, ...]]  # by figure (`field/figures.py`), from the smallest value to the largest


class Target(Struct, frozen=True):
    """Where an engine will run and what it must hold. One TOML file in export/ each; `config.load_target` reads it."""

    name: str
    backend: BackendName
    precisions: tuple[Precision, ...]
    description: str = ""
    head: Head = "logits"
    batch: tuple[int, int, int] = (1, 1, 1)  # min, opt, max
    max_drop: float = 0.5  # mIoU points an engine may lose against its PyTorch reference
    min_reference: float | None = None  # mIoU that the reference must have; None: twice that of labels drawn by lot
    min_int8_speedup: float = 1.1  # INT8 is only chosen when at least this much faster than FP16 (or FP32)
    workspace_mib: int = 0  # 0: 256 MiB
    optimization_level: int = 3
    timing_cache: bool = True
    dla_core: int | None = None
    compute_capabilities: tuple[str, ...] = ()  # "8.7"; empty: of this machine
    hardware_compatible: Literal["", "ampere_plus", "same_compute_capability"] = ""  # other GPUs that run the plan too
    version_compatible: bool = False  # later TensorRT versions of the same major number run it too
    local: bool = True  # False: a device that is not this machine, so build-engine writes a build kit

    def __post_init__(self) -> None:
        least, usual, most = self.batch
        if not 1 <= least <= usual <= most:
            raise ValueError(
                f"batch {list(self.batch)}: expected [least, usual, most], each at least the one before, from 1"
            )
        unknown = self.backend != "openvino" and "bf16" in self.precisions
        if not self.precisions or unknown:
            raise ValueError(
                f"precisions {list(self.precisions)}: expected one or more that {self.backend} builds{', not bf16' if unknown else ''}"
            )
        if not 0 <= self.optimization_level <= 5 or self.workspace_mib < 0:
            raise ValueError(
                f"optimization_level {self.optimization_level}, workspace_mib {self.workspace_mib}: expected 0 to 5, and MiB from 0 on"
            )


class DlaUse(Struct, frozen=True):
    """Which layers run on a Jetson's DLA. `hops` counts changes of device along the network's order; `on_gpu`: layer -> reason."""

    on_dla: int
    on_gpu: dict[str, str]
    hops: int
    int8: tuple[int, int] | None = None  # convolutions and Adds that have all ranges for INT8, and all of them

    @classmethod
    def of(cls, layers: Sequence[str], refused: Mapping[str, str]) -> DlaUse:
        """All layers in the network's order, and those that the DLA refuses with the reason."""
        devices = [name in refused for name in layers]
        hops = sum(a != b for a, b in itertools.pairwise(devices))
        on_gpu = {name: refused[name] for name in layers if name in refused}
        return cls(on_dla=devices.count(False), on_gpu=on_gpu, hops=hops)

    def text(self, most_named: int = 4) -> str:
        """One line: 30 layers on the DLA, 3 on the GPU (argmax: ..., ...), 2 hops."""
        named = ", ".join(f"{name}: {reason}" for name, reason in list(self.on_gpu.items())[:most_named])
        more = ", ..." if len(self.on_gpu) > most_named else ""
        told = f" ({named}{more})" if named else ""
        int8 = f", {self.int8[0]} of {self.int8[1]} convolutions and Adds in INT8" if self.int8 else ""
        return f"{self.on_dla} layers on the DLA, {len(self.on_gpu)} on the GPU{told}, {self.hops} hops{int8}"


class Candidate(Struct, frozen=True):
    """One precision that `build-engine --eval-data` tried. Numbers are None where `reason` says why."""

    precision: Precision
    engine: str = ""
    p50_ms: float | None = None
    miou: float | None = None
    miou_drop: float | None = None
    pixel_agreement: float | None = None
    passed: bool | None = None
    reason: str = ""

    def row(self) -> str:
        """One line of a table."""
        if self.p50_ms is None or self.miou is None:
            return f"  {self.precision:<5} {self.reason}"
        return (
            f"  {self.precision:<5} {self.p50_ms:8.2f} ms  mIoU {self.miou:6.2f} (drop {self.miou_drop:+.2f})  "
            f"agreement {self.pixel_agreement:.4f}  {self.reason}"
        )


class Choice(Struct, frozen=True):
    """The engine that is kept, why, and all that were tried."""

    engine: str
    precision: Precision
    why: str
    candidates: tuple[Candidate, ...]

    def summary(self) -> str:
        """A table, the chosen one and the reason."""
        return "\n".join([*(c.row() for c in self.candidates), f"{self.engine}: {self.why}"])


class BuildInfo(Struct, frozen=True, omit_defaults=True):
    """How an engine was built: what is needed to build and prove it again, and what the builder said."""

    target: Target
    onnx: str  # name of the graph it was built from; its hash is in the record
    command: str  # of the stock tool that does the same
    kept: tuple[str, ...] = ()  # files made on the way, beside the engine, which needs none of them to run
    parsed_onnx: str = ""  # the graph with casts that TensorRT parsed, where it is not `onnx`
    options: dict[str, str | int | bool] = {}  # OpenVINO's
    strongly_typed: bool | None = None  # TensorRT's, like all that follows
    typed: dict[str, int] = {}  # convolutions by the type that the network gives them
    workspace_bytes: int = 0
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    kept_fp32: tuple[str, ...] = ()
    given_back_to_fp16: tuple[str, ...] = ()
    timing_cache: dict[str, str] = {}  # file name -> SHA-256 after the build
    failed_attempts: dict[str, str] = {}  # name -> error
    dla: DlaUse | None = None
    chosen: Choice | None = None


class EngineRecord(Struct, frozen=True):
    """`NAME.json` beside `NAME.engine` or `NAME.xml`: what the engine is and how it may be trusted."""

    backend: BackendName
    files: dict[str, str]  # file name -> SHA-256
    precision: Precision  # asked
    onnx_sha256: str
    meta: OnnxMeta  # of the graph it was built from
    build: BuildInfo
    format: int = 2
    realised: dict[str, int] = {}  # layers by the precision they really run in, where the back end tells
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    device: str = ""
    versions: dict[str, str] = {}
    latency: LatencyRecord | None = None
    parity: ParityRecord | None = None
    profile: FieldProfile | None = None  # of the set on which the gate was held
    created: str = ""
    tool: str = ""
    digest: str = ""  # over all other fields, as seals.py writes it
    signature: str = ""  # over the same by the builder's key, see signing.py

    def __post_init__(self) -> None:
        names = (*self.files, *self.build.kept, self.build.onnx, self.build.parsed_onnx)
        if not self.files or any("/" in name or "\\" in name or "\0" in name or name == ".." for name in names):
            raise ValueError(
                f"files {', '.join(self.files) or 'none'}: expected plain names of files beside the record"
            )

    @property
    def signed(self) -> bool:
        """Whether a builder put his name to it; `require_signed` says whether it is his."""
        return bool(self.signature)


class Engine(Struct, frozen=True):
    """An engine on disk and its record. `path` is the `.engine` or `.xml` file."""

    path: Path
    record: EngineRecord
    checked: bool = True  # False: loaded with `trust`, so nobody knows whether the files are those of the record

    @property
    def meta(self) -> OnnxMeta:
        """What the graph it was built from says of itself."""
        return self.record.meta

    @property
    def sha256(self) -> str:
        """Of the engine's file, as the record says."""
        return self.record.files[self.path.name]

    def require_tensors(self) -> None:
        """Raise ArtifactError unless the record names inputs and outputs, without which nothing can run it."""
        if not (self.record.inputs and self.record.outputs):
            raise ArtifactError(f"{self.record_path(self.path)}: names no inputs or no outputs; build the engine again")

    @staticmethod
    def record_path(path: Path) -> Path:
        """`fused.int8.xml` -> `fused.int8.json`; where that is another engine's, `fused.int8.xml.json`."""
        plain, own = path.with_suffix(".json"), path.with_name(f"{path.name}.json")
        return own if own.is_file() or _is_of_another_engine(plain, path.name) else plain

    @classmethod
    def load(cls, path: Path, *, trust: bool = False) -> Engine:
        """Read the record and check every file's hash against it (an engine is code; `trust` skips the hashes).

        Raises: ArtifactError: engine or record missing, damaged, of another format, or the hash differs.
        """
        finish_swap(path.parent, path.name)
        if not path.is_file():
            raise ArtifactError(f"{path}: no such engine; make one with `tsss-edge build-engine`")
        record_path, record = cls.record_path(path), cls.load_record(path)
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
        return cls(path=path, record=record, checked=not trust)

    @classmethod
    def load_record(cls, path: Path) -> EngineRecord:
        """The record alone. Raises: ArtifactError: missing, damaged, changed, of another format."""
        finish_swap(path.parent, path.name)
        record_path = cls.record_path(path)
        if not record_path.is_file():
            raise ArtifactError(
                f"{path}: no record {record_path.name} beside it; build it with `tsss-edge build-engine`"
            )
        return read_sealed(record_path, EngineRecord, "build the engine again with `tsss-edge build-engine`")

    def with_record(self, **changes: Any) -> Engine:
        """The same engine with fields of its record replaced, written back atomically. A signature does not survive a change."""
        record = msgspec.structs.replace(self.record, **{"signature": "", **changes})
        write_sealed(self.record_path(self.path), record)
        return msgspec.structs.replace(self, record=record)


def _is_of_another_engine(record_path: Path, name: str) -> bool:
    """Whether a file is the record of engines that are there beside it, none of them called `name`."""
    try:
        files = {str(file) for file in parse_json(record_path.read_bytes())["files"]}
    except (OSError, msgspec.DecodeError, TypeError, KeyError):
        return False  # whoever reads it as a record says what is wrong with it
    engines = {file for file in files if file.endswith((".xml", ".engine"))}
    return name not in files and any(path.name in engines for path in record_path.parent.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# The door

Artifact: TypeAlias = Checkpoint | OnnxModel | Engine


def load_artifact(model: Path | Artifact, *, trust: bool = False) -> Artifact:
    """A checkpoint (`.pt` or run folder), ONNX file (`.onnx`) or engine (`.xml`, `.engine`), read once; loaded ones pass.

    Args:    trust: load an engine whose hash is not the one in its record.
    Raises:  ArtifactError: another kind of file, missing, damaged, of another format.
    """
    if not isinstance(model, Path):
        return model
    if model.is_dir() or model.suffix == ".pt":
        return Checkpoint.load(model)
    if model.suffix == ".onnx":
        return OnnxModel.load(model)
    if model.suffix in (".xml", ".engine"):
        return Engine.load(model, trust=trust)
    raise ArtifactError(f"{model}: expected a checkpoint (.pt), ONNX file (.onnx) or engine (.xml, .engine)")


Reference: TypeAlias = Checkpoint | OnnxModel  # what an engine is compared with: what it was made from, in float


def load_reference(model: Path | Reference) -> Reference:
    """A checkpoint, or the float ONNX file of an imported network; loaded ones pass.

    Raises: ArtifactError: another kind of file, missing, damaged, or an ONNX file that is itself made from a checkpoint.
    """
    loaded = load_artifact(model)
    if isinstance(loaded, Checkpoint):
        return loaded
    if isinstance(loaded, OnnxModel) and loaded.meta.imported is not None and loaded.meta.precision == "fp32":
        return loaded
    raise ArtifactError(
        f"{loaded.path}: no reference; give the checkpoint that the engine was made from, or, for an imported network, the "
        "FP32 file that `tsss-edge import` wrote"
    )
