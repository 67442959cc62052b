"""Any artifact on disk -> a description in plain words, and the same as builtins for `--json`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from tsss_edge.artifacts import (
    CalibrationRecord,
    Checkpoint,
    Classes,
    Engine,
    EngineRecord,
    OnnxModel,
    Preprocess,
    Struct,
    Target,
)
from tsss_edge.backends.plan import read_header
from tsss_edge.config import CalibSet, TrainConfig, read_toml
from tsss_edge.deploy.bundle import Bundle
from tsss_edge.deploy.kit import Kit
from tsss_edge.errors import ArtifactError, TsssEdgeError
from tsss_edge.files import edge, read_json, sha256_file
from tsss_edge.seals import read_sealed


class Description(Struct, frozen=True):
    """`kind` in words, and facts in the order they are shown."""

    path: str
    kind: str
    facts: dict[str, Any]

    def summary(self) -> str:
        """One line for what it is, then one a fact."""
        width = max((len(name) for name in self.facts), default=0)
        lines = [f"  {name:<{width}}  {_plain(value)}" for name, value in self.facts.items()]
        return "\n".join([f"{self.path}: {self.kind}", *lines])


def inspect_path(path: Path) -> Description:
    """Describe a file or folder. Raises: ArtifactError: missing, damaged, or nothing of ours."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file or folder")
    readers = {".pt": _checkpoint, ".onnx": _onnx, ".xml": _engine, ".engine": _engine, ".plan": _engine}
    readers |= {".json": _json, ".toml": _toml}
    if path.suffix not in readers:
        raise ArtifactError(f"{path}: expected a dataset or run folder, or a file ending in {', '.join(readers)}")
    return readers[path.suffix](path)


def _folder(path: Path) -> Description:
    if (path / "ImageSets").is_dir() or (path / "JPEGImages").is_dir():
        return _dataset(path)
    for name, kind, words in (
        ("kit.json", Kit, "build kit"),
        ("bundle.json", Bundle, "bundle for a host without a network"),
    ):
        if (path / name).is_file():
            return _packed(path, msgspec.to_builtins(read_json(path / name, kind)), words)
    found = [name for name in ("best.pt", "last.pt") if (path / name).is_file()]
    if not found:
        raise ArtifactError(
            f"{path}: neither a dataset (JPEGImages/, ImageSets/), a run folder (best.pt), a build kit nor a bundle"
        )
    inner = _checkpoint(path / found[0])
    return Description(path=str(path), kind=f"run folder, {inner.kind}", facts={"checkpoint": found[0], **inner.facts})


def _packed(path: Path, facts: dict[str, Any], kind: str) -> Description:
    """A kit or bundle with the state of its files, as SHA256SUMS knows them."""
    with edge(path / "SHA256SUMS", "list of hashes", "make it again"):
        rows = [line.split("  ", 1) for line in (path / "SHA256SUMS").read_text().splitlines()]
        files = {name: _check_file(path / name, digest) for digest, name in rows}
    return Description(path=str(path), kind=kind, facts={**facts, "files": files})


def _dataset(path: Path) -> Description:
    from tsss_edge.data.voc import VocDataset

    dataset = VocDataset.open(path)
    facts: dict[str, Any] = {f"split {name}": f"{len(dataset.ids(name))} images" for name in dataset.splits}
    facts |= _classes(dataset.classes)
    facts["masks"] = sum(1 for _ in (path / "SegmentationClass").glob("*.png"))
    facts["image labels"] = "image_labels.csv" if (path / "image_labels.csv").is_file() else "from the masks"
    return Description(path=str(path), kind="dataset in PASCAL VOC layout", facts=facts)


def _checkpoint(path: Path) -> Description:
    checkpoint = Checkpoint.load(path)
    meta = checkpoint.meta
    facts = {"architecture": meta.arch, "parameters": sum(t.numel() for t in checkpoint.state().values())}
    facts |= _classes(meta.classes) | {"strong": list(meta.strong) or "all", "input": _input(meta.preprocess)}
    facts |= {f"metric {name}": round(value, 4) for name, value in meta.metrics.items()}
    facts |= {f"training {name}": value for name, value in meta.training.items()}
    facts |= {"adapted from": meta.parent} if meta.parent else {}
    facts |= {"made by": meta.tool, "sha256": checkpoint.sha256}
    return Description(path=str(path), kind=f"checkpoint, stage {meta.stage}", facts=facts)


def _onnx(path: Path) -> Description:
    model = OnnxModel.load(path)
    meta, graph = model.meta, model.graph
    kinds = Counter(node.op_type for node in graph.graph.node)
    facts: dict[str, Any] = {"architecture": meta.arch, "precision": meta.precision, "head": meta.head}
    facts |= {"objectness": meta.objectness, "opset": graph.opset_import[0].version}
    facts |= {"nodes": ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))}
    facts |= _classes(meta.classes) | {"input": _input(meta.preprocess)} | _calibration(meta.calibration)
    facts |= {"nodes kept in float": list(meta.float_nodes) or "none"}
    facts |= {"checkpoint sha256": meta.checkpoint_sha256, "made by": meta.tool, "sha256": model.sha256}
    facts |= {"its checkpoint was adapted from": meta.parent} if meta.parent else {}
    if (origin := meta.imported) is not None:
        facts |= {"imported from": origin.source, "found": list(origin.found)}
        facts["the network sees"] = (
            f"(value * {origin.scale:g} - {list(origin.mean)}) / {list(origin.std)}, {origin.colors}, {origin.layout}"
        )
    if meta.calibration is not None:
        from tsss_edge.onnxgraph.qdq import explain

        told = [d for d in explain(graph) if d.reason]
        facts |= {f"node {d.node} ({d.op})": f"{'INT8' if d.quantized else 'float'}, {d.reason}" for d in told}
    kind = "exported by tsss-edge" if meta.imported is None else "imported by tsss-edge"
    return Description(path=str(path), kind=f"ONNX model {kind}", facts=facts)


def _engine(path: Path) -> Description:
    facts: dict[str, Any] = {}
    if path.suffix != ".xml":
        header = read_header(path)
        facts["plan"] = f"of {header}"
        if header.compute_capabilities:
            facts["compute capabilities"] = ", ".join(header.compute_capabilities)
    if not Engine.record_path(path).is_file():
        facts["record"] = "none: not built by tsss-edge, or its .json is lost; it cannot be trusted"
        return Description(path=str(path), kind="engine without a record", facts=facts)
    record = Engine.load_record(path)
    facts |= {"files": {name: _check_file(path.parent / name, digest) for name, digest in record.files.items()}}
    return Description(path=str(path), kind=f"engine, {record.backend}", facts=facts | _record_facts(record))


def _check_file(path: Path, digest: str) -> str:
    if not path.is_file():
        return "MISSING"
    return "as built" if sha256_file(path) == digest else "CHANGED since the build: not the hash in the record"


def _record_facts(record: EngineRecord) -> dict[str, Any]:
    meta, build = record.meta, record.build
    facts: dict[str, Any] = {"target": build.target.name, "architecture": meta.arch, "precision": record.precision}
    facts["convolutions run in"] = record.realised or build.typed or "not known"
    facts |= {"head": meta.head, "objectness": meta.objectness} | _classes(meta.classes)
    facts |= {"input": _input(meta.preprocess)}
    facts |= {f"tensor {s.name}": f"{s.dtype} {s.shape}" for s in (*record.inputs, *record.outputs)}
    facts |= _calibration(meta.calibration) | {"built on": record.device}
    facts |= {f"version {name}": value for name, value in record.versions.items()}
    told = msgspec.to_builtins(build)
    facts |= {f"build {name}": value for name, value in told.items() if value and name not in ("target", "chosen")}
    facts["build batch"] = build.target.batch
    if build.chosen is not None:
        facts["chosen because"] = build.chosen.why
    latency, parity = record.latency, record.parity
    facts["latency"] = f"p50 {latency.p50_ms:.2f} ms, p95 {latency.p95_ms:.2f} ms" if latency else "not measured"
    facts["parity"] = (
        f"{'PASSED' if parity.passed else 'FAILED'}: mIoU {parity.miou_engine:.2f} against "
        f"{parity.miou_reference:.2f} on {parity.images} images, agreement {parity.pixel_agreement:.4f}"
        + "".join(f"; {problem}" for problem in parity.problems)
        if parity
        else "not checked; run `tsss-edge parity`"
    )
    facts |= {"onnx sha256": record.onnx_sha256, "checkpoint sha256": meta.checkpoint_sha256}
    return facts | {"created": record.created, "made by": record.tool}


def _json(path: Path) -> Description:
    """An engine record or a calibration table, told apart by a field that every format of them has."""
    content = read_json(path, dict)
    if isinstance(ranges := content.get("ranges"), dict):
        from tsss_edge.calib.ranges import CalibTable

        table = msgspec.to_builtins(CalibTable.load(path))
        facts = {
            name: value for name, value in table.items() if not isinstance(value, (dict, list)) and name != "digest"
        }
        facts["tensors with a range"] = len(ranges)
        return Description(path=str(path), kind="calibration table", facts=facts)
    if "backend" not in content:
        raise ArtifactError(f"{path}: JSON, but neither an engine record nor a calibration table")
    record = read_sealed(path, EngineRecord, "build the engine again")
    engine = path.parent / next(iter(record.files))
    if engine.is_file():
        return _engine(engine)
    facts = {"files": dict.fromkeys(record.files, "MISSING")} | _record_facts(record)
    return Description(path=str(path), kind=f"engine record, {record.backend}", facts=facts)


def _toml(path: Path) -> Description:
    for kind, words in ((Target, "deployment target"), (CalibSet, "calibration set"), (TrainConfig, "training config")):
        try:
            value = read_toml(path, kind)
        except TsssEdgeError:
            continue
        return Description(path=str(path), kind=words, facts=msgspec.to_builtins(value))
    raise ArtifactError(f"{path}: TOML, but neither a target, a calibration set nor a training config")


def _classes(classes: Classes) -> dict[str, Any]:
    return {"classes": f"{len(classes)}: {', '.join(classes.names)}"}


def _input(preprocess: Preprocess) -> str:
    height, width = preprocess.size_hw
    return f"{width}x{height} RGB uint8, fit {preprocess.fit}, scale {preprocess.scale:g} (hash {preprocess.hash})"


def _calibration(record: CalibrationRecord | None) -> dict[str, Any]:
    if record is None:
        return {}
    source = "RANDOM NOISE" if record.random else f"{record.images} pictures of {record.split}"
    return {"calibration": f"{record.method} on {source}, seed {record.seed}, list {record.image_list_sha256[:16]}"}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
