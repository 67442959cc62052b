"""An engine that is damaged, or was built for another machine -> the same engine, built here from its stored ONNX file.

The new engine inherits nothing: parity is checked again where a reference and labelled pictures are given, and is "not
checked" in its record where they are not. TensorRT's results differ between versions and GPUs.
"""

from __future__ import annotations

from pathlib import Path

from tsss_edge.artifacts import Engine, EngineRecord, Struct
from tsss_edge.backends.cuda.gpus import first_gpu
from tsss_edge.backends.plan import read_header, require_record, require_runnable
from tsss_edge.backends.trt_api import load
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.engine import build_engine, recorded_target
from tsss_edge.files import read_json, sha256_file
from tsss_edge.parity import check_parity
from tsss_edge.parity.result import ParityReport


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
    reference: Path | None = None,
    eval_data: Path | None = None,
    split: str = "val",
    threads: int | None = None,
) -> Rebuilt:
    """Build `engine` (`.xml`, `.engine`) anew in its place, with the target and precision of its record.

    Args:    reference, eval_data: checkpoint and labelled set; with both, parity is checked and stored.
    Raises:  ArtifactError: no record, or its ONNX file is not beside it any more. UnavailableError: it cannot be built here.
    """
    record = _record(engine)
    target = recorded_target(engine, record)
    build_engine(stored_onnx(engine, record), target, engine, precision=record.precision)
    if reference is None or eval_data is None:
        return Rebuilt(engine=str(engine), reason=reason)
    report = check_parity(engine, reference, eval_data, split=split, max_drop=target.max_drop, threads=threads)
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


def _record(engine: Path) -> EngineRecord:
    path = Engine.record_path(engine)
    if not path.is_file():
        raise ArtifactError(f"{engine}: no record {path.name} beside it, so nobody knows what it was built from")
    return read_json(path, EngineRecord)


def stored_onnx(engine: Path, record: EngineRecord) -> Path:
    """The ONNX file of an engine, known by its hash, in the same folder. Raises: ArtifactError: it is gone."""
    named = engine.parent / str(record.flags.get("onnx", ""))
    others = (path for path in sorted(engine.parent.glob("*.onnx")) if path != named)
    for path in (named, *others):
        if path.is_file() and sha256_file(path) == record.onnx_sha256:
            return path
    raise ArtifactError(
        f"{engine}: the ONNX file it was built from ({named.name}, SHA-256 {record.onnx_sha256[:16]}...) is not in "
        f"{engine.parent}; put it there, or build from the checkpoint"
    )
