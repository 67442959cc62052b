"""An engine that is damaged, or was built for another machine -> the same engine, built here from its stored ONNX file.

The new engine inherits nothing: parity is checked again where a reference and labelled pictures are given, and is "not
checked" in its record where they are not. TensorRT's results differ between versions and GPUs.
"""

from __future__ import annotations

from pathlib import Path

from tsss_edge.artifacts import Engine, OnnxModel, Reference, Struct
from tsss_edge.backends.cuda.gpus import first_gpu
from tsss_edge.backends.plan import read_header, require_record, require_runnable
from tsss_edge.backends.trt_api import load
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.build import build_engine, engine_path
from tsss_edge.parity import ParityReport, check_parity


class Rebuilt(Struct, frozen=True):
    """The new engine, why it was built, and the proof where one was asked for."""

    engine: str
    reason: str
    parity: ParityReport | None = None

    def summary(self) -> str:
        """Two or three lines, then the parity report."""
        proof = self.parity.summary() if self.parity else "not checked: run `tsss-edge parity` before you trust it"
        return f"{self.engine}: built again ({self.reason})\n{proof}"


def rebuild_engine(
    engine: Path,
    *,
    reason: str = "asked for",
    reference: Path | Reference | None = None,
    eval_data: Path | None = None,
    split: str = "val",
    threads: int | None = None,
) -> Rebuilt:
    """Build `engine` (`.xml`, `.engine`) anew in its place, with the target and precision of its record.

    Args:    reference, eval_data: checkpoint and labelled set; with both, parity is checked and stored.
    Raises:  ArtifactError: no record, or its ONNX file is not beside it any more. UnavailableError: it cannot be built here.
    """
    record = Engine.load_record(engine)
    if engine != engine_path(engine, record.build.target, record.precision):
        raise ArtifactError(
            f"{engine}: a copy under another name than builds have (NAME.{record.precision}{engine.suffix}), such as a server's; "
            "build the engine again that it was copied from, and copy that"
        )
    target, source = record.build.target, stored_onnx(engine)
    built = build_engine(source, target, engine, precision=record.precision)
    if reference is None or eval_data is None:
        return Rebuilt(engine=str(engine), reason=reason)
    report = check_parity(
        built,
        reference,
        eval_data,
        split=split,
        max_drop=target.max_drop,
        min_reference=target.min_reference,
        threads=threads,
    )
    return Rebuilt(engine=str(engine), reason=reason, parity=report)


def rebuild_if_unfit(engine: Path) -> Rebuilt | None:
    """Build `engine` again when it is damaged or does not fit this machine; None when it is fine, or no engine at all."""
    if engine.suffix not in (".xml", ".engine"):
        return None
    reason = unfit(engine)
    return rebuild_engine(engine, reason=reason) if reason else None


def unfit(engine: Path) -> str:
    """Why an engine cannot be used here, in one sentence; empty when it can.

    Raises: UnavailableError: no build can help: TensorRT or the GPU is missing.
    """
    try:
        record = Engine.load(engine).record
        if record.backend == "openvino":  # an IR runs on every CPU and version since its own
            return ""
        header = read_header(engine)
        require_record(engine, header, record)
    except ArtifactError as error:
        return str(error)
    gpu = first_gpu()
    if gpu is None:
        raise UnavailableError(f"{engine}: there is no CUDA GPU on this machine, so no build of it can run here")
    try:
        require_runnable(engine, header, record, load(header.flavour), gpu)
    except UnavailableError as error:
        return str(error)
    return ""


def stored_onnx(engine: Path) -> OnnxModel:
    """The graph that an engine was built from, by its name or else by its hash in the same folder.

    Raises: ArtifactError: no record, or the graph is gone.
    """
    record, folder = Engine.load_record(engine), engine.parent
    for name in (record.build.onnx, *(path.name for path in sorted(folder.glob("*.onnx")))):
        if (model := OnnxModel.find(name, record.onnx_sha256, [folder])) is not None:
            return model
    raise ArtifactError(
        f"{engine}: the ONNX file it was built from ({record.build.onnx}, SHA-256 {record.onnx_sha256[:16]}...) is not in "
        f"{folder}; put it there, or build from the checkpoint"
    )
