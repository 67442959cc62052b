"""Variants of the edge networks, trained alike for a short while -> docs/results/architecture.md and .json.

python scripts/architecture_study.py train --data DIR --config TOML --work DIR      each variant in turn; goes on where it was
python scripts/architecture_study.py engines --data DIR --work DIR                  INT8 on that set
python scripts/architecture_study.py cost --work DIR                                parameters, GFLOP, INT8 engines
python scripts/architecture_study.py latency --work DIR [--seconds 3]               OpenVINO INT8 at 512x512, 21 classes
python scripts/architecture_study.py page --work DIR --out docs/results/architecture.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from edge_variants import VARIANTS, merge_branches
from torch import nn

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Preprocess
from tsss_edge.backends import open_backend
from tsss_edge.bench import time_networks
from tsss_edge.bench.conditions import examine_machine, read_load, read_mhz
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import TrainConfig, load_target, read_toml
from tsss_edge.errors import TsssEdgeError
from tsss_edge.evaluate import evaluate
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.files import read_json, write_bytes, write_json
from tsss_edge.models import ARCHITECTURES, SegNet
from tsss_edge.train.supervised import train_supervised

BUDGET_HW, BUDGET_CLASSES = (512, 512), 21  # what the networks' cost budgets are stated for
Found = dict[str, dict[str, Any]]  # variant -> what was measured


def register() -> None:
    """Make the variants known to the training loop and, merged, to the exporter."""
    for name, (_, make) in VARIANTS.items():
        ARCHITECTURES[f"study {name}"] = lambda *, num_classes, make=make, **_: make(num_classes)
        ARCHITECTURES[f"study {name} merged"] = lambda *, num_classes, make=make, **_: merge_branches(make(num_classes))


def train(data: Path, config: TrainConfig, work: Path, names: Sequence[str]) -> None:
    """The same settings, seed and number of epochs for every variant."""
    for name in names:
        own = msgspec.structs.replace(config, arch=f"study {name}")
        checkpoint = train_supervised(own, data, work / name, resume=True)
        log = [msgspec.json.decode(line) for line in (work / name / "log.jsonl").read_bytes().splitlines()]
        remember(work, name, miou=log[-1]["miou"], epochs=len(log), train_seconds=sum(line["seconds"] for line in log))
        print(f"{name}: {checkpoint.meta.metrics['miou']:.2f}")


def engines(data: Path, work: Path, names: Sequence[str]) -> None:
    """INT8 of every trained variant: mIoU on val against PyTorch."""
    for name in names:
        make = VARIANTS[name][1]
        trained = Checkpoint.load(work / name / "last.pt")
        net = make(len(trained.meta.classes))
        net.load_state_dict(Checkpoint.load(work / name / "best.pt").state())
        deployed = save_merged(net, trained.meta, work / name / "merged.pt", name)
        int8 = to_int8(deployed, data, work / name, "camvid-train-128", allow_random=False)
        engine = build_engine(int8, load_target("cpu"), work / name / "net.xml", precision="int8")
        reference, got = (evaluate(path, data).miou for path in (deployed, engine.path))
        remember(work, name, miou_pytorch=reference, miou_int8=got)


def rtx_builds(int8: Path, out: Path) -> str:
    """ "builds", or why it does not."""
    try:
        build_engine(int8, load_target("rtx"), out, precision="int8")
    except TsssEdgeError as error:
        return str(error)
    return "builds"


def cost(work: Path, names: Sequence[str]) -> None:
    """Parameters and GFLOP at the budgets' size, INT8 engines of random weights to be timed, TensorRT-RTX's answer."""
    classes = Classes(names=tuple(f"class {i}" for i in range(BUDGET_CLASSES)))
    for name in names:
        torch.manual_seed(0)
        net = VARIANTS[name][1](BUDGET_CLASSES).eval()
        meta = CheckpointMeta(stage="supervised", arch="", classes=classes, preprocess=Preprocess(size_hw=BUDGET_HW))
        deployed = save_merged(net, meta, work / name / "cost/merged.pt", name)
        int8 = to_int8(deployed, work, work / name / "cost", None, allow_random=True)
        build_engine(int8, load_target("cpu"), work / name / "cost/net.xml", precision="int8")
        rtx = rtx_builds(int8, work / name / "cost/rtx/net.engine")
        remember(work, name, parameters=sum(p.numel() for p in net.parameters()), gflop=gflop(net), rtx=rtx)


def latency(work: Path, names: Sequence[str], seconds: float) -> None:
    """OpenVINO INT8 engines of `cost`, all in alternating rounds."""
    mhz, load = read_mhz(), read_load()
    paths = [work / name / "cost/net.int8.xml" for name in names]
    timed = time_networks([open_backend(path) for path in paths], [path.name for path in paths], duration_s=seconds)
    for name, times in zip(names, timed, strict=True):
        remember(work, name, p50_ms=times.latency_ms.p50, best_ms=times.best_ms)
    write_json(work / "machine.json", examine_machine(threads=None, mhz_before=mhz, load_before=load))


def save_merged(net: SegNet, meta: CheckpointMeta, path: Path, name: str) -> Path:
    """The network as it is deployed, as a checkpoint that the exporter can read."""
    meta = msgspec.structs.replace(meta, arch=f"study {name} merged")
    return Checkpoint.save(path, meta, merge_branches(net).state_dict()).path


def to_int8(checkpoint: Path, data: Path, folder: Path, calib_set: str | None, *, allow_random: bool) -> Path:
    onnx = export_onnx(checkpoint, folder / "net.onnx")
    out = folder / "net.int8.onnx"
    return calibrate(onnx.path, data, out, calib_set=calib_set, size=4, allow_random=allow_random).path


@torch.no_grad()
def gflop(net: nn.Module) -> float:
    """2 x multiply-adds of the deployed convolutions at the budgets' size, in 10^9."""
    total = 0

    def count(conv: nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += 2 * out.numel() * conv.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    net(torch.zeros(1, 3, *BUDGET_HW))
    return total / 1e9


def remember(work: Path, name: str, **values: Any) -> None:
    """Add to what is known of a variant."""
    found = recall(work)
    write_json(work / "found.json", {**found, name: {**found.get(name, {}), **values}})


def recall(work: Path) -> Found:
    return read_json(work / "found.json", Found) if (work / "found.json").is_file() else {}


def page(work: Path, out: Path) -> None:
    """The table, and its JSON twin. What was not measured yet is a dash."""
    found = recall(work)
    settings = {name: path.read_text() for name in found if (path := work / name / "config.toml").is_file()}
    rows = "".join(row(name, values) for name, values in found.items())
    text = f"{HEAD}{rows}\n"
    if settings:
        text += f"The settings of every run (but `arch`):\n\n```toml\n{next(iter(settings.values()))}```\n"
    write_bytes(out, text.encode())
    machine = read_json(work / "machine.json", dict[str, Any])
    write_json(out.with_suffix(".json"), {"variants": found, "settings": settings, "machine": machine})


HEAD = """# Which edge network

Each variant changes one thing of `base` (`edge-m`) and was trained alike on CamVid train; mIoU is of val, percent. One
seed, and as few epochs as the settings below say: that ranks coarse differences only, not a point or two. A dash was not
measured.
GFLOP (2 x multiply-adds), parameters and latency are of the deployed network at 512x512 with 21 classes and random
weights; latency is of the OpenVINO INT8 engine alone, all engines timed in alternating rounds. INT8 drop: PyTorch FP32
minus the INT8 engine on CamVid val, ranges by minmax on 128 training pictures.

| variant | what is changed | val mIoU | INT8 drop | GFLOP | M parameters | INT8 ms, best | median | TensorRT-RTX INT8 |
|---|---|---|---|---|---|---|---|---|
"""


def row(name: str, found: dict[str, Any]) -> str:
    drop = found["miou_pytorch"] - found["miou_int8"] if "miou_int8" in found else None
    parameters = found["parameters"] / 1e6 if "parameters" in found else None
    numbers = (
        (found.get("miou"), 1),
        (drop, 2),
        (found.get("gflop"), 2),
        (parameters, 2),
        (found.get("best_ms"), 1),
        (found.get("p50_ms"), 1),
    )
    cells = ("-" if value is None else f"{value:.{digits}f}" for value, digits in numbers)
    return f"| {' | '.join((name, VARIANTS[name][0], *cells, found.get('rtx', '-')))} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "engines", "cost", "latency", "page"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    args = parser.parse_args()
    register()
    steps: dict[str, Callable[[], None]] = {
        "train": lambda: train(args.data, read_toml(args.config, TrainConfig), args.work, args.variants),
        "engines": lambda: engines(args.data, args.work, args.variants),
        "cost": lambda: cost(args.work, args.variants),
        "latency": lambda: latency(args.work, args.variants, args.seconds),
        "page": lambda: page(args.work, args.out),
    }
    steps[args.what]()


if __name__ == "__main__":
    main()
