"""Checkpoint -> OnnxModel, compared with the network before it is written; and model -> the graphs its engines are built from."""
# Letters: N batch, H height, W width, K class.

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import tsss_edge
from tsss_edge.artifacts import (
    Checkpoint,
    Engine,
    Head,
    OnnxMeta,
    OnnxModel,
    Precision,
    Preprocess,
    Struct,
    Target,
    load_artifact,
)
from tsss_edge.backends.base import Outputs, expected_outputs
from tsss_edge.calib.sets import spread
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.onnxgraph.sessions import run_tensors
from tsss_edge.segment import load_picture

if TYPE_CHECKING:
    from tsss_edge.models import SegNet
    from tsss_edge.models.fused import FusedNet

# What an ONNX file must be for an engine of each precision: bf16 is chosen by the CPU's runtime, not by the file.
_FILE_PRECISION: dict[Precision, Precision] = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8"}
TYPED_SUFFIX = ".trt.onnx"  # of graphs with the casts that TensorRT's strong typing wants
SCANNED = 32  # pictures for FP16's range scan: overflow is a matter of powers of two, not of percents

# Largest logit error / largest logit, and least share of equal labels. Measured on edge-s and edge-m, trained and random:
# FP32 3e-6 and 1.0, FP16 2e-3 and 0.998; the limits leave a factor of about ten.
LIMITS: dict[Precision, tuple[float, float]] = {"fp32": (1e-4, 0.999), "fp16": (2e-2, 0.98)}


class ExportCheck(Struct, frozen=True):
    """ONNX Runtime against PyTorch. `logit_error` and `objectness_error` are absolute, `agreement` is 0-1, all worst case."""

    images: int
    agreement: float
    logit_error: float
    logit_range: float  # largest absolute logit of PyTorch
    objectness_error: float


def export_onnx(
    checkpoint: Path | Checkpoint,
    out: Path,
    *,
    head: Head = "logits",
    objectness: bool = False,
    precision: Precision = "fp32",
    batch: int = 1,
    check_images: Sequence[Path] = (),
) -> OnnxModel:
    """Write the fused graph of a checkpoint (loaded, `.pt` or run folder); the same checkpoint gives the same bytes.

    Args:    batch: size of the batches the graph takes; 0 leaves it free.
             check_images: pictures for the comparison with PyTorch and for FP16's range scan; without any, generated ones.
    Raises:  ArtifactError: no such head, a layer that cannot be exported, or ONNX and PyTorch disagree; `out` stays as it was.
             DataError: a check picture cannot be read.
    """
    if precision not in ("fp32", "fp16"):
        raise ArtifactError(f"export writes fp32 or fp16, not {precision}; `tsss-edge calibrate` makes INT8 of fp32")
    from tsss_edge.models import load_model
    from tsss_edge.models.fused import FusedNet

    source = Checkpoint.load(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    if source.meta.stage == "classifier":
        raise ArtifactError(f"{source.path}: a classifier gives no masks; export a P-Net or supervised checkpoint")
    net = load_model(source)
    spec = source.meta.preprocess
    fused = FusedNet(net, scale=spec.scale, head=head, objectness=objectness)
    meta = OnnxMeta(
        arch=source.meta.arch,
        classes=source.meta.classes,
        preprocess=spec,
        head=head,
        objectness=objectness,
        precision=precision,
        checkpoint_sha256=source.sha256,
        parent=source.meta.parent,
        tool=f"tsss-edge {tsss_edge.__version__}",
    )
    pictures = [load_picture(path, spec) for path in check_images] or generated_pictures(spec)
    graph = build_graph(fused, meta, batch)
    if precision == "fp16":
        graph, meta = to_half(graph, meta, pictures)
    require_agreement(out, compare(net, graph, spec, pictures), precision)
    return OnnxModel.save(out, graph, meta)


def build_graph(fused: FusedNet, meta: OnnxMeta, batch: int) -> Any:
    """The FP32 graph as onnx.ModelProto; `batch` 0 names the free dimension "N"."""
    from onnx import helper

    from tsss_edge.export.emit import emit

    size: int | str = batch or "N"
    outputs = {
        s.name: helper.make_tensor_value_info(
            s.name, helper.np_dtype_to_tensor_dtype(np.dtype(s.dtype)), [size, *s.shape[1:]]
        )
        for s in expected_outputs(meta)
    }
    uint8 = helper.np_dtype_to_tensor_dtype(np.dtype("uint8"))
    image = helper.make_tensor_value_info("image", uint8, [size, *meta.preprocess.size_hw, 3])
    return emit(fused, {"image": image}, outputs)


def to_half(graph: Any, meta: OnnxMeta, pictures: Sequence[NDArray[np.uint8]]) -> tuple[Any, OnnxMeta]:
    """The graph with FP16 casts, nodes that overflow on `pictures`, (1,H,W,3) uint8, kept in FP32 and named in the meta."""
    from tsss_edge.onnxgraph.casts import cast_fp16, overflowing_nodes, scan_peaks

    kept = overflowing_nodes(graph, scan_peaks(graph, pictures))
    return cast_fp16(graph, keep_float=kept), msgspec.structs.replace(meta, float_nodes=tuple(sorted(kept)))


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def generated_pictures(spec: Preprocess, count: int = 2) -> list[NDArray[np.uint8]]:
    """Smooth colour fields with noise, always the same, for a check without a data set."""
    height, width = spec.size_hw
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = rng.uniform(0, 255, (1, -(-height // 32), -(-width // 32), 3)).repeat(32, 1).repeat(32, 2)
        coarse = coarse[:, :height, :width]  # imported networks have sizes of any kind
        pictures.append(np.clip(coarse + rng.normal(0, 16, coarse.shape), 0, 255).astype(np.uint8))
    return pictures


def compare(net: SegNet, graph: Any, spec: Preprocess, pictures: Sequence[NDArray[np.uint8]]) -> ExportCheck:
    """Run the unfused network in PyTorch and the graph in ONNX Runtime on (1,H,W,3) uint8 pictures."""
    run = run_tensors(graph, [output.name for output in graph.graph.output], fused=True)
    found = [_differences(run(picture), _torch_outputs(net, spec, picture)) for picture in pictures]
    logit_error, logit_range, objectness_error, different = np.max(found, axis=0).tolist()
    return ExportCheck(
        images=len(pictures),
        agreement=1 - different,
        logit_error=logit_error,
        logit_range=logit_range,
        objectness_error=objectness_error,
    )


def _differences(got: Outputs, want: Outputs) -> NDArray[np.float64]:
    """(logit error, logit range, objectness error, share of different labels); NaN counts as infinite."""
    errors = {
        n: np.nan_to_num(np.abs(got[n] - want[n]), nan=np.inf).max() for n in ("logits", "objectness") if n in got
    }
    labels = got["labels"] if "labels" in got else got["logits"].argmax(1)
    expected = want["labels"] if "labels" in got else want["logits"].argmax(1)
    different = float((labels != expected).mean())
    return np.array([errors.get("logits", 0), np.abs(want["logits"]).max(), errors.get("objectness", 0), different])


def _torch_outputs(net: SegNet, spec: Preprocess, picture: NDArray[np.uint8]) -> Outputs:
    """What the trained network says, normalised in the open: (1,H,W,3) uint8 -> logits, labels, objectness."""
    import torch

    with torch.inference_mode():
        heads = net(torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255 * spec.scale)
        wide = torch.nn.functional.interpolate(heads.logits, scale_factor=8.0, mode="bilinear", align_corners=False)
    found = {"logits": heads.logits, "objectness": heads.objectness}
    return {"labels": wide.argmax(1).numpy(), **{n: t.numpy() for n, t in found.items() if t is not None}}


def require_agreement(out: Path, check: ExportCheck, precision: Precision) -> None:
    """Raise ArtifactError when the graph differs from the network by more than rounding explains."""
    limit, least = LIMITS[precision]
    error = max(check.logit_error, check.objectness_error)
    bound = limit * max(1.0, check.logit_range)
    if error <= bound and check.agreement >= least:
        return
    raise ArtifactError(
        f"{out}: not written, {precision} ONNX and PyTorch disagree on {check.images} pictures: largest error {error:.3g} "
        f"(limit {bound:.3g}), equal labels {check.agreement:.4f} (at least {least}); "
        + ("export fp32 instead" if precision == "fp16" else "this is a fault of the export, please report it")
    )


# ---------------------------------------------------------------------------------------------------------------------
# The graphs that engines are built from


def _for_engines(model: OnnxModel) -> bool:
    return model.meta.calibration is None or model.meta.calibration.pairs == "signed"


class EngineSources:
    """A model and the graphs that its engines are built from: each is found or made once, whoever asks for it.

    A checkpoint is exported and calibrated, an FP32 graph is cast or calibrated (its INT8 twin beside it is taken first),
    any other graph is taken as it is.
    """

    def __init__(self, model: Path | Checkpoint | OnnxModel, target: Target, calib_data: Path | None = None) -> None:
        """Load `model` where it is a path.

        Raises: ArtifactError: it is an engine, missing or damaged, or a graph with another head than the target asks for.
                A target that says `logits`, or nothing, takes a graph as it was exported.
        """
        loaded = load_artifact(model)
        if isinstance(loaded, Engine):
            raise ArtifactError(f"{loaded.path}: is an engine already; give the checkpoint or ONNX file it came from")
        if isinstance(loaded, OnnxModel) and not _for_engines(loaded):
            raise ArtifactError(
                f"{loaded.path}: its roundings are for ONNX Runtime alone; calibrate again without --target ort"
            )
        if isinstance(loaded, OnnxModel) and target.head not in ("logits", loaded.meta.head):
            raise ArtifactError(
                f"{loaded.path}: gives {loaded.meta.head}, target {target.name} wants {target.head}; give the checkpoint, or a "
                f"file exported with --head {target.head}, or leave `head` out of the target"
            )
        self.model, self.target, self.calib_data = loaded, target, calib_data
        self._graphs: dict[Precision, OnnxModel] = {}
        self._made: dict[Precision, tuple[str, ...]] = {}  # names of the files

    def possible(self) -> tuple[Precision, ...]:
        """The precisions of the target that can be made from the model, in the target's order.

        Raises: ArtifactError: none can, with the way out.
        """
        have: Precision = "fp32" if isinstance(self.model, Checkpoint) else self.model.meta.precision
        can = {have} | ({"fp16"} if have == "fp32" else set())
        if have == "fp32" and (self.calib_data is not None or self.twin is not None):
            can.add("int8")
        possible = tuple(p for p in self.target.precisions if _FILE_PRECISION[p] in can)
        if not possible:
            raise ArtifactError(
                f"{self.model.path} is {have}, target {self.target.name} builds {', '.join(self.target.precisions)}; "
                "give the FP32 ONNX file or the checkpoint (for INT8 with --calib-data)"
            )
        return possible

    def wanted(self, precision: Precision | None) -> tuple[Precision, ...]:
        """`precision` alone, else all that are possible. Raises: ArtifactError: the target does not build it, or none can be made."""
        if precision is not None and precision not in self.target.precisions:
            raise ArtifactError(
                f"target {self.target.name} builds {', '.join(self.target.precisions)}, not {precision}; name one of these, or a "
                "target of your own that lists it"
            )
        return (precision,) if precision is not None else self.possible()

    @cached_property
    def twin(self) -> OnnxModel | None:
        """The INT8 file that `calibrate` made of an FP32 graph, in the same folder; None where there is none.

        Files with TensorRT's casts (`NAME.int8.trt.onnx`) are made of such a twin and are none. Other files are ignored.
        """
        if isinstance(self.model, Checkpoint):
            return None
        for path in sorted(self.model.path.parent.glob("*int8*.onnx")):
            if path.name.endswith(TYPED_SUFFIX) or path == self.model.path:
                continue
            try:
                twin = OnnxModel.load(path)
            except ArtifactError:
                continue
            record = twin.meta.calibration
            made_of_it = record is not None and record.onnx_sha256 == self.model.sha256
            if twin.meta.precision == "int8" and made_of_it and _for_engines(twin):
                return twin
        return None

    def planned(self, precision: Precision, base: str) -> dict[str, str]:
        """Names of the graphs that `graph` would make -> how; empty where the graph is there already."""
        need = _FILE_PRECISION[precision]
        if self._find(need) is not None:
            return {}
        checkpoint = isinstance(self.model, Checkpoint)
        how = {"fp32": "exported", "fp16": "exported" if checkpoint else "cast", "int8": "calibrated"}
        on_the_way = {f"{base}.fp32.onnx": "exported"} if checkpoint and need == "int8" else {}
        return on_the_way | {f"{base}.{need}.onnx": how[need]}

    def name(self, precision: Precision, base: str) -> str:
        """Name of the graph that `graph` would give."""
        found = self._find(_FILE_PRECISION[precision])
        return found.path.name if found is not None else list(self.planned(precision, base))[-1]

    def graph(self, precision: Precision, folder: Path, base: str) -> OnnxModel:
        """The graph for an engine of `precision`; what has to be made becomes `folder/BASE.PRECISION.onnx`.

        Raises: ArtifactError: it cannot be made from the model.
        """
        need = _FILE_PRECISION[precision]
        if need not in self._graphs:
            self._graphs[need] = self._find(need) or self._make(need, folder, base)
        return self._graphs[need]

    def kept(self, precision: Precision) -> tuple[str, ...]:
        """Names of the files that were made for `graph(precision, ...)`."""
        need = _FILE_PRECISION[precision]
        return (self._made.get("fp32", ()) if need == "int8" else ()) + self._made.get(need, ())

    def known(self) -> list[OnnxModel]:
        """Every graph between the model and its engines: `parity` looks at them too."""
        graphs = list(self._graphs.values())
        if isinstance(self.model, OnnxModel):
            graphs.append(self.model)
            calibration = self.model.meta.calibration
            if calibration is not None:
                origin = OnnxModel.find(calibration.onnx, calibration.onnx_sha256, [self.model.path.parent])
                graphs += [origin] if origin is not None else []
        return graphs

    def _find(self, need: Precision) -> OnnxModel | None:
        """A graph that is there already. Raises: ArtifactError: none is, and none can be made of the one that is given."""
        if isinstance(self.model, Checkpoint):
            return None
        have = self.model.meta.precision
        if have not in ("fp32", need):
            raise ArtifactError(f"{self.model.path} is {have}, {need} was asked; give the FP32 ONNX file or checkpoint")
        return self.model if have == need else self.twin if need == "int8" else None

    def _make(self, need: Precision, folder: Path, base: str) -> OnnxModel:
        out = folder / f"{base}.{need}.onnx"
        if need == "int8":
            if self.calib_data is None:
                raise ArtifactError(
                    f"INT8 needs ranges and {self.model.path} has none; give --calib-data DIR, or run "
                    "`tsss-edge calibrate` first"
                )
            made = self._calibrate(self.graph("fp32", folder, base), out)
        elif isinstance(self.model, Checkpoint):
            least, _, most = self.target.batch
            batch = most if least == most else 0
            pictures = self._training_pictures() if need == "fp16" else []
            made = export_onnx(
                self.model, out, head=self.target.head, precision=need, batch=batch, check_images=pictures
            )
        else:
            made = self._half(self.model, out)
        self._made[need] = tuple(sorted(p.name for p in folder.iterdir() if p.name.startswith(f"{base}.{need}.")))
        return made

    def _calibrate(self, floating: OnnxModel, out: Path) -> OnnxModel:
        from tsss_edge.calib.calibrate import calibrate

        assert self.calib_data is not None
        return calibrate(floating, self.calib_data, out)

    def _half(self, given: OnnxModel, out: Path) -> OnnxModel:
        """FP16 casts; what overflows on the dataset's training pictures, or else on generated ones, stays FP32."""
        spec = given.meta.preprocess
        pictures = [load_picture(path, spec) for path in self._training_pictures()] or generated_pictures(spec)
        graph, meta = to_half(given.graph, given.meta, pictures)
        return OnnxModel.save(out, graph, msgspec.structs.replace(meta, precision="fp16"))

    def _training_pictures(self) -> list[Path]:
        if self.calib_data is None:
            return []
        dataset = VocDataset.open(self.calib_data)
        return [dataset.image_path(i) for i in spread(dataset.ids("train"), SCANNED, seed=0)]
