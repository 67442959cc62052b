"""Train each network the same way, quantise, build, score and time all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pages import watch_machine

from front.networks import PRETRAINED, float_graph
from tsss_edge.artifacts import Checkpoint, Engine, Struct
from tsss_edge.backends import open_backend
from tsss_edge.bench import Machine, time_networks
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import TrainConfig, load_target
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import TsssEdgeError
from tsss_edge.export.build import build_engine
from tsss_edge.onnxgraph.qdq import PairOptions
from tsss_edge.scoring import evaluate
from tsss_edge.train.supervised import train_supervised

UNSEEN = "unseen"  # the split of the sequence that was left out


class Row(Struct, frozen=True):
    """What one network of the study reaches. mIoU in percent; core-ms a picture on one thread, medians of alternating rounds."""

    name: str
    parameters: int
    epochs: int
    unseen: float
    val: float
    val_int8: float
    unseen_int8: float
    float_ms: float
    int8_ms: float
    rtx: str  # "built", or why not


class Study(Struct, frozen=True):
    """The rows, and what they were measured on. `trivial`: mIoU of the most frequent class everywhere, (unseen, val)."""

    rows: tuple[Row, ...]
    left_out: str
    trivial: tuple[float, float]
    machine: Machine
    date: str
    tool: str
    command: str


def split_by_sequence(data: Path, out: Path, left_out: str) -> Path:
    """The set as links, without the pictures whose names start with `left_out` in "train"; those are the split "unseen"."""
    lists = out / "ImageSets/Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    for name in ("JPEGImages", "SegmentationClass", "classes.txt"):
        with suppress(FileExistsError):  # made before, perhaps by a training beside this one
            (out / name).symlink_to((data / name).resolve())
    ids = {s: (data / f"ImageSets/Segmentation/{s}.txt").read_text().split() for s in ("train", "val")}
    held = [i for i in ids["train"] if i.startswith(left_out)]
    if not held or len(held) == len(ids["train"]):
        raise SystemExit(f"{data}: no or all pictures of train start with {left_out!r}; name one of its sequences")
    parts = {"train": [i for i in ids["train"] if i not in held], "val": ids["val"], UNSEEN: held}
    for name, listed in parts.items():
        (lists / f"{name}.txt").write_text("\n".join(listed) + "\n")
    return out


def settings(name: str, epochs: int) -> TrainConfig:
    """Of a network: the same for all, but that a pretrained one starts from its weights and keeps the stages up to stride 16."""
    pretrained = name in PRETRAINED
    return TrainConfig(
        arch=name,
        size_hw=(352, 480),
        crop_hw=(192, 256),
        epochs=epochs,
        batch=8,
        lr=3e-3,
        scale_range=(0.6, 1.8),
        jaccard=1.0,
        ema=0.98,
        threads=1,
        val_every=epochs,  # the last weights are kept; val chooses nothing
        encoder_weights="imagenet" if pretrained else "",
        freeze=16 if pretrained else 0,
    )


def trivial(data: Path) -> tuple[float, float]:
    """mIoU on (unseen, val) of an answer that is the most frequent class of "train" everywhere."""
    dataset = VocDataset.open(data)
    most = int(np.argmax(pixels(dataset, "train")))
    seen = [pixels(dataset, split) for split in (UNSEEN, "val")]
    unseen, val = (float(100 * s[most] / s.sum() / np.count_nonzero(s)) for s in seen)
    return unseen, val


def pixels(dataset: VocDataset, split: str) -> NDArray[np.int64]:
    """(K,) labelled pixels of each class."""
    counts = np.zeros(256, np.int64)
    for image_id in dataset.ids(split):
        counts += np.bincount(dataset.mask(image_id).ravel(), minlength=256)
    return counts[: len(dataset.classes)]


def train_one(name: str, data: Path, out: Path, epochs: int) -> None:
    """A run folder; goes on where it stopped."""
    folder = out / name
    train_supervised(settings(name, epochs), data, folder, resume=(folder / "last.pt").is_file())


def engines(name: str, data: Path, out: Path, weight_bits: int) -> tuple[Engine, Engine, str]:
    """(float, INT8, how the TensorRT-RTX build ended) in OUT/NAME."""
    folder = out / name
    graph = float_graph(Checkpoint.load(folder / "best.pt"), folder / "fused.onnx")
    int8 = calibrate(graph, data, folder / "int8.onnx", size=128, options=PairOptions(weight_bits=weight_bits))
    cpu = load_target("cpu")
    plain = build_engine(graph, cpu, folder / "net.xml", precision="fp32")
    small = build_engine(int8, cpu, folder / "net.xml", precision="int8")
    try:
        build_engine(int8, load_target("rtx"), folder / "rtx/net.engine")
        rtx = "built"
    except TsssEdgeError as error:
        rtx = str(error).splitlines()[0]
    return plain, small, rtx


def measure(
    names: Sequence[str], data: Path, out: Path, *, seconds: float, weight_bits: int
) -> tuple[list[Row], Machine]:
    """Build all, score all, then time all in one run."""
    built = {name: engines(name, data, out, weight_bits) for name in names}
    flat = [(name, engine) for name in names for engine in built[name][:2]]
    watched = watch_machine(1)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_backend(engine, threads=1)) for _, engine in flat]
        timed = time_networks(opened, [name for name, _ in flat], duration_s=seconds)
    machine = watched()
    rows = []
    for index, name in enumerate(names):
        float_engine, int8_engine, rtx = built[name]
        state = Checkpoint.load(out / name / "best.pt").state()
        scores = {
            (kind, split): float(evaluate(engine.path, data, split).miou)
            for kind, engine in (("float", float_engine), ("int8", int8_engine))
            for split in ("val", UNSEEN)
        }
        rows.append(
            Row(
                name=name,
                parameters=sum(
                    t.numel() for key, t in state.items() if "running" not in key and "num_batches" not in key
                ),
                epochs=len((out / name / "log.jsonl").read_text().splitlines()),
                unseen=scores["float", UNSEEN],
                val=scores["float", "val"],
                val_int8=scores["int8", "val"],
                unseen_int8=scores["int8", UNSEEN],
                float_ms=float(timed[2 * index].latency_ms.p50),
                int8_ms=float(timed[2 * index + 1].latency_ms.p50),
                rtx=rtx,
            )
        )
        print(rows[-1], flush=True)
    return rows, machine
