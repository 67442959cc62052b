"""Checkpoint -> OnnxModel: the fused inference graph, compared with the network it came from before it is written."""
# Letters: N batch, H height, W width, K class.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

import tsss_edge
from tsss_edge.artifacts import Checkpoint, Head, OnnxMeta, OnnxModel, Precision, Preprocess, Struct
from tsss_edge.backends.common import output_specs
from tsss_edge.data.voc import read_image
from tsss_edge.errors import ArtifactError
from tsss_edge.models import SegNet, load_model
from tsss_edge.models.fused import FusedNet
from tsss_edge.onnxgraph.sessions import open_session

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
    checkpoint: Path,
    out: Path,
    *,
    head: Head = "logits",
    objectness: bool = False,
    precision: Precision = "fp32",
    batch: int = 1,
    check_images: Sequence[Path] = (),
) -> OnnxModel:
    """Write the fused graph of a checkpoint (`.pt` or run folder); the same checkpoint gives the same bytes.

    Args:    batch: size of the batches the graph takes; 0 leaves it free.
             check_images: pictures for the comparison with PyTorch and for FP16's range scan; without any, generated ones.
    Raises:  ArtifactError: no such head, a layer that cannot be exported, or ONNX and PyTorch disagree; `out` stays as it was.
             DataError: a check picture cannot be read.
    """
    if precision not in ("fp32", "fp16"):
        raise ArtifactError(f"export writes fp32 or fp16, not {precision}; `tsss-edge calibrate` makes INT8 of fp32")
    source = Checkpoint.load(checkpoint)
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
        tool=f"tsss-edge {tsss_edge.__version__}",
    )
    pictures = load_pictures(check_images, spec) if check_images else generated_pictures(spec)
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
    specs = output_specs(meta.classes, meta.preprocess, head=meta.head, objectness=meta.objectness)
    outputs = {
        s.name: helper.make_tensor_value_info(
            s.name, helper.np_dtype_to_tensor_dtype(np.dtype(s.dtype)), [size, *s.shape[1:]]
        )
        for s in specs
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


def load_pictures(paths: Sequence[Path], spec: Preprocess) -> list[NDArray[np.uint8]]:
    """Picture files as network input, (1,H,W,3) uint8 RGB each. Raises: DataError: one cannot be read."""
    from tsss_edge.kernels.preprocess import preprocess

    return [preprocess(read_image(path), spec, bgr=False)[None] for path in paths]


def generated_pictures(spec: Preprocess, count: int = 2) -> list[NDArray[np.uint8]]:
    """Smooth colour fields with noise, always the same, for a check without a data set."""
    height, width = spec.size_hw
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = rng.uniform(0, 255, (1, height // 32, width // 32, 3)).repeat(32, 1).repeat(32, 2)
        pictures.append(np.clip(coarse + rng.normal(0, 16, coarse.shape), 0, 255).astype(np.uint8))
    return pictures


def compare(net: SegNet, graph: Any, spec: Preprocess, pictures: Sequence[NDArray[np.uint8]]) -> ExportCheck:
    """Run the unfused network in PyTorch and the graph in ONNX Runtime on (1,H,W,3) uint8 pictures."""
    session = open_session(graph)
    names = [o.name for o in session.get_outputs()]
    worst = np.zeros(4)  # logit error, logit range, objectness error, disagreement
    for picture in pictures:
        want = _torch_outputs(net, spec, picture)
        dims = session.get_inputs()[0].shape
        batch = dims[0] if isinstance(dims[0], int) else 1
        got = dict(zip(names, session.run(names, {"image": np.repeat(picture, batch, 0)}), strict=True))
        worst = np.maximum(worst, _differences(got, want))
    return ExportCheck(
        images=len(pictures),
        agreement=1 - float(worst[3]),
        logit_error=float(worst[0]),
        logit_range=float(worst[1]),
        objectness_error=float(worst[2]),
    )


def _differences(got: dict[str, NDArray[Any]], want: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """(logit error, logit range, objectness error, share of different labels); NaN counts as infinite."""
    errors = {
        n: np.nan_to_num(np.abs(got[n] - want[n]), nan=np.inf).max() for n in ("logits", "objectness") if n in got
    }
    labels = got["labels"] if "labels" in got else got["logits"].argmax(1)
    expected = want["labels"] if "labels" in got else want["logits"].argmax(1)
    different = float((labels != expected).mean())
    return np.array([errors.get("logits", 0), np.abs(want["logits"]).max(), errors.get("objectness", 0), different])


@torch.inference_mode()
def _torch_outputs(net: SegNet, spec: Preprocess, picture: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What the trained network says, normalised in the open: (1,H,W,3) uint8 -> logits, labels, objectness."""
    x = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255 * spec.scale
    heads = net(x)
    found = {"logits": heads.logits, "objectness": heads.objectness}
    wide = torch.nn.functional.interpolate(heads.logits, scale_factor=8.0, mode="bilinear", align_corners=False)
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
