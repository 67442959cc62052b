"""Checkpoint or ONNX file + a target that is another machine -> a build kit: one folder, one command to run there.

TensorRT builds only on the GPU it builds for. The kit carries the graphs, the target, this package and what the gate needs;
`build.sh` checks hashes, builds every precision, runs parity where labelled pictures came along, times, and packs what is to
be brought back. Parity there needs no PyTorch, which JetPack does not have: the reference is run when the kit is made, and the
kit carries its answers.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

import tsss_edge
from tsss_edge.artifacts import (
    Checkpoint,
    DlaUse,
    OnnxModel,
    Precision,
    Reference,
    Struct,
    Target,
)
from tsss_edge.backends.cuda.gpus import first_gpu
from tsss_edge.deploy.bundle import DISTRIBUTION, write_wheel
from tsss_edge.deploy.choose import gate_reference
from tsss_edge.deploy.dla_rules import expected_dla
from tsss_edge.errors import ArtifactError
from tsss_edge.export.build import KNOWN_SUFFIXES, folder_beside, require_whole
from tsss_edge.export.onnx_export import EngineSources
from tsss_edge.files import sha256_file, write_json
from tsss_edge.parity import require_reference

# Not installed by name: of the first two build.sh decides by the system's OpenCV; the third is for PyTorch, which is not there.
LEFT_OUT = ("numpy", "opencv-python", "onnxscript")
NUMPY = "numpy>=1.26"

SCRIPT = """#!/bin/sh
# Builds the engines of this kit on the machine it runs on: {description}
# Needs TensorRT from the system (JetPack). Result: result.tar.gz, to be brought back.
# TSSS_EDGE_PYTHON: a Python that has tsss-edge and its needs already; else a venv is made here.
set -eu
cd "$(dirname "$0")"
sha256sum -c SHA256SUMS
if [ -z "${{TSSS_EDGE_PYTHON:-}}" ]; then
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "tsss-edge needs Python 3.10 (JetPack 6), $(python3 --version) is here; set TSSS_EDGE_PYTHON, or build without" >&2
        echo "record and gate: trtexec --onnx=FILE.int8.onnx --saveEngine=FILE.int8.engine --fp16 --int8" >&2
        exit 4
    fi
    # The system's OpenCV stays. One that was built for NumPy 1 does not load beside NumPy 2, so NumPy rises to 1.26 at most.
    if found=$(python3 -c 'import cv2, numpy; print(numpy.__version__)' 2>/dev/null); then
        case "$found" in 1.*) numpy="{numpy},<2" ;; *) numpy="{numpy}" ;; esac
        opencv=""
    elif uname -r | grep -q tegra; then
        echo "no OpenCV here; on a Jetson it comes with the system: sudo apt install python3-opencv" >&2
        exit 4
    else
        numpy="{numpy}"
        opencv="opencv-python"
    fi
    python3 -m venv --system-site-packages venv
    TSSS_EDGE_PYTHON=venv/bin/python
    if [ -d wheels ]; then index="--no-index --find-links wheels"; else index=""; fi
    "$TSSS_EDGE_PYTHON" -m pip install $index {needs} $opencv "$numpy"
    "$TSSS_EDGE_PYTHON" -m pip install --no-deps --force-reinstall {wheel}
fi
edge() {{ "$TSSS_EDGE_PYTHON" -m tsss_edge "$@"; }}
mkdir -p out
edge doctor --json out/doctor.json || echo "doctor failed; the build goes on" >&2
failed=0
{steps}
tar -czf result.tar.gz out
echo "bring back $(pwd)/result.tar.gz"
exit $failed
"""
BUILD = """edge build-engine {onnx} --target target.toml --precision {precision} --out out/{stem} || failed=1"""
PARITY = """reference=answers
[ -d "$reference" ] || reference=reference.onnx
if [ -f out/{engine} ] && [ -e "$reference" ] && [ -d data ]; then
    edge parity out/{engine} --reference "$reference" --data data --split {split} --max-drop {max_drop}{least} \\
        --report out/parity-{precision} --json out/parity-{precision}.json || failed=$?
fi"""
BENCH = """[ ! -f out/{engine} ] || edge bench out/{engine} --json out/bench-{precision}.json || failed=1"""


class Kit(Struct, frozen=True):
    """`kit.json`: what is inside and where it came from."""

    target: Target
    graphs: dict[Precision, str]  # precision -> ONNX file
    onnx_sha256: dict[str, str]
    checkpoint_sha256: str
    split: str
    created: str
    tool: str
    format: int = 2
    # precision -> what the device's DLA is expected to take, where the target uses one
    dla: dict[str, DlaUse] = msgspec.field(default_factory=dict)

    def summary(self, folder: Path) -> str:
        """What lies in `folder` and what to do with it; for a terminal."""
        graphs = ", ".join(f"{precision} ({name})" for precision, name in self.graphs.items())
        lines = [f"{folder}: build kit for {self.target.description or self.target.name}", f"  graphs: {graphs}"]
        lines += [f"  DLA, {precision}, by its rules: {dla.text()}" for precision, dla in self.dla.items()]
        return "\n".join([*lines, f"  copy it to the device and run there: sh {folder.name}/build.sh"])


def kit_folder(out: Path, target: Target) -> Path:
    """Where the kit for `--out OUT` goes: runs/fused.engine -> runs/fused-jetson-orin-kit; a name without suffix stays."""
    return out.with_name(f"{out.stem}-{target.name}-kit") if out.suffix in KNOWN_SUFFIXES else out


def runs_here(target: Target) -> bool:
    """Whether engines of `target` are built on this machine: a local target, or the device itself."""
    gpu = first_gpu()
    return target.local or (gpu is not None and gpu.compute_capability in target.compute_capabilities)


def write_kit(
    model: Path | Checkpoint | OnnxModel,
    target: Target,
    out: Path,
    *,
    calib_data: Path | None = None,
    reference: Path | Reference | None = None,
    eval_data: Path | None = None,
    split: str = "val",
    precision: Precision | None = None,
) -> Kit:
    """Write the kit to the folder `out`; a failure leaves nothing.

    Args:    model: graph of ours or a checkpoint, loaded or by its path; INT8 needs a calibrated file or `calib_data`.
             reference: checkpoint or imported graph for parity there (default `model` when it is one).
             eval_data: labelled set; the split's pictures and the reference's answers on them come along.
             precision: the only one to build there; None: all of the target that `model` allows.
    Raises:  ArtifactError: `out` exists, `model` gives none of the target's precisions, or was not made from `reference`.
             ValueError: `eval_data` without a reference to compare with, or a reference without `eval_data`.
    """
    if reference is not None and eval_data is None:
        raise ValueError("a reference is for the gate, which needs a labelled set; give --eval-data too")
    if out.exists():
        raise ArtifactError(f"{out}: exists already; choose another --out folder for the build kit")
    sources = EngineSources(model, target, calib_data)
    possible = sources.possible()
    if precision is not None and precision not in possible:
        raise ArtifactError(
            f"target {target.name} builds {', '.join(possible)} from {sources.model.path}, not {precision}"
        )
    precisions = (precision,) if precision else possible
    gate = gate_reference(sources.model, reference) if eval_data is not None else None
    origin = sources.model if gate is None else gate
    with folder_beside(out) as staging:
        graphs = {p: _graph(sources, p, staging) for p in precisions}
        if gate is not None:
            require_reference(next(iter(graphs.values())), gate)
        if isinstance(origin, OnnxModel) and origin.meta.imported is not None and origin.meta.precision == "fp32":
            shutil.copyfile(origin.path, staging / "reference.onnx")
        if eval_data is not None:
            _copy_split(eval_data, split, staging / "data")
        if eval_data is not None and isinstance(origin, Checkpoint):
            _answer(origin, split, staging)
        kit = _describe(target, graphs, split)
        _write_rest(staging, kit, graphs)
        staging.chmod(0o755)
        staging.rename(out)
    return kit


def _graph(sources: EngineSources, precision: Precision, folder: Path) -> OnnxModel:
    """The graph in the kit; one that lies elsewhere is copied, with its CalibTable where `calibrate` left it."""
    given = sources.model.path
    folder_name = given.parent.resolve().name if given.parent.name in ("", "..") else given.parent.name
    base = (folder_name if given.name in ("best.pt", "last.pt") else given.stem).split(".")[0]
    graph = sources.graph(precision, folder, base)
    require_whole(graph)
    if graph.path.parent == folder:
        return graph
    path = folder / f"{base}.{graph.meta.precision}.onnx"
    for suffix in (".onnx", ".ranges.json"):
        if graph.path.with_suffix(suffix).is_file():
            shutil.copyfile(graph.path.with_suffix(suffix), path.with_suffix(suffix))
    return graph.moved(path)


def _copy_split(data: Path, split: str, out: Path) -> None:
    """One split of a VOC-layout set: list, pictures, masks, class names."""
    from tsss_edge.data.voc import VocDataset

    dataset = VocDataset.open(data)
    (out / "ImageSets/Segmentation").mkdir(parents=True)
    for image_id in dataset.ids(split):
        for path in (dataset.image_path(image_id), dataset.mask_path(image_id)):
            target = out / path.relative_to(dataset.root)  # an id may name a folder
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.copyfile(data / f"ImageSets/Segmentation/{split}.txt", out / f"ImageSets/Segmentation/{split}.txt")
    if (data / "classes.txt").is_file():
        shutil.copyfile(data / "classes.txt", out / "classes.txt")


def _answer(checkpoint: Checkpoint, split: str, kit: Path) -> None:
    """Run the reference on the kit's own copy of the pictures."""
    from tsss_edge.data.voc import VocDataset
    from tsss_edge.parity.reference_answers import record_answers

    record_answers(checkpoint, VocDataset.open(kit / "data"), split, kit / "answers")


def _describe(target: Target, graphs: dict[Precision, OnnxModel], split: str) -> Kit:
    first = next(iter(graphs.values()))
    return Kit(
        target=msgspec.structs.replace(target, local=True),  # in the kit, the device is "this machine"
        graphs={precision: graph.path.name for precision, graph in graphs.items()},
        onnx_sha256={graph.path.name: graph.sha256 for graph in graphs.values()},
        checkpoint_sha256=first.meta.checkpoint_sha256,
        split=split,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tool=f"tsss-edge {tsss_edge.__version__}",
        dla={p: _dla(graph) for p, graph in graphs.items()} if target.dla_core is not None else {},
    )


def _dla(graph: OnnxModel) -> DlaUse:
    return expected_dla(graph.graph, graph.meta.calibration.others if graph.meta.calibration else None)


def _write_rest(folder: Path, kit: Kit, graphs: dict[Precision, OnnxModel]) -> None:
    wheel = write_wheel(folder)
    (folder / "target.toml").write_text(toml_text(kit.target))
    write_json(folder / "kit.json", kit)
    if "int8" in graphs:
        write_json(folder / "calibration.json", graphs["int8"].meta.calibration)
    script = folder / "build.sh"
    script.write_text(script_text(kit, wheel.name, needs(wheel)))
    script.chmod(0o755)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = "".join(f"{sha256_file(p)}  {p.relative_to(folder)}\n" for p in files)
    (folder / "SHA256SUMS").write_text(sums)


def needs(wheel: Path) -> tuple[str, ...]:
    """What pip is to install beside our wheel, as the wheel says itself: its own requirements, and the extra `onnx`."""
    (ours,) = importlib.metadata.Distribution.discover(name=DISTRIBUTION, path=[str(wheel)])
    told = [text.removesuffix("; extra == 'onnx'") for text in ours.requires or ()]
    return tuple(text for text in told if "extra ==" not in text and re.split(r"[^\w.-]", text)[0] not in LEFT_OUT)


def script_text(kit: Kit, wheel: str, requirements: Sequence[str]) -> str:
    """`build.sh` of a kit. `requirements`: what pip installs beside the wheel."""
    steps = []
    for precision, onnx in kit.graphs.items():
        stem = onnx.split(".")[0]
        suffix = ".xml" if kit.target.backend == "openvino" else ".engine"
        names: dict[str, Any] = {
            "onnx": shlex.quote(onnx),
            "precision": precision,
            "stem": shlex.quote(stem),
            "engine": shlex.quote(f"{stem}.{precision}{suffix}"),
            "split": shlex.quote(kit.split),
            "max_drop": kit.target.max_drop,
            "least": "" if kit.target.min_reference is None else f" --min-reference {kit.target.min_reference:g}",
        }
        steps += [text.format(**names) for text in (BUILD, PARITY, BENCH)]
    description = kit.target.description.replace("\n", " ")
    quoted = " ".join(shlex.quote(text.replace("'", '"')) for text in requirements)
    return SCRIPT.format(description=description, needs=quoted, numpy=NUMPY, wheel=wheel, steps="\n".join(steps))


def toml_text(target: Target) -> str:
    """A target as TOML that `read_toml` gives back equal (strings, numbers, booleans and lists of them; JSON's forms fit)."""
    values = {k: v for k, v in msgspec.to_builtins(target).items() if v is not None}
    return "".join(f"{name} = {msgspec.json.encode(value).decode()}\n" for name, value in values.items())
