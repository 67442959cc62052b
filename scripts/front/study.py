"""Train each network the same way, quantise, build, score and time all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import fmean

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from pages import watch_machine

from front.networks import PRETRAINED, float_graph
from tsss_edge.artifacts import Checkpoint, Engine, OnnxModel, Struct
from tsss_edge.backends import open_backend
from tsss_edge.bench import Machine, time_networks
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import TrainConfig, load_target
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError, TsssEdgeError
from tsss_edge.export.build import build_engine
from tsss_edge.onnxgraph.qdq import PairOptions
from tsss_edge.reproduce.results import finished
from tsss_edge.scoring import evaluate
from tsss_edge.train.runfolder import epochs_done
from tsss_edge.train.supervised import train_supervised

UNSEEN = "unseen"  # the split of the sequence that was left out


class Scores(Struct, frozen=True):
    """mIoU in percent of one training, by split and kind of engine."""

    unseen: float
    val: float
    unseen_int8: float
    val_int8: float


class Row(Struct, frozen=True):
    """What one network of the study reaches, a training a seed; core-ms a picture on one thread, medians of alternating rounds."""

    name: str
    parameters: int
    epochs: int
    seeds: tuple[Scores, ...]
    float_ms: float
    int8_ms: float
    rtx: str  # "built", or why not

    def mean(self, score: str) -> float:
        """Of one of the `Scores`, over the seeds."""
        return fmean(getattr(scores, score) for scores in self.seeds)

    def range(self, score: str) -> float:
        """Best less worst seed; 0 of a single one."""
        values = [getattr(scores, score) for scores in self.seeds]
        return float(max(values) - min(values))


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


def settings(name: str, epochs: int, seed: int = 0) -> TrainConfig:
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
        seed=seed,
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


def train_one(name: str, data: Path, folder: Path, *, epochs: int, seed: int) -> None:
    """A run folder; goes on where it stopped."""
    train_supervised(settings(name, epochs, seed), data, folder, resume=True)


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Where the training of a network with a seed lies."""
    return out / f"seed-{seed}" / name


def trained(out: Path, name: str, seeds: Sequence[int]) -> list[Path]:
    """The run folders of a network that are finished."""
    folders = [run_folder(out, name, seed) for seed in seeds]
    found = [folder for folder in folders if finished(folder)]
    if not found:
        raise SystemExit(f"{folders[0]}: no finished training of {name}; first run the step train with the same --out")
    return found


def engines(folder: Path, data: Path, weight_bits: int) -> tuple[Engine, Engine, OnnxModel]:
    """(float, INT8, what INT8 was built of) in a run folder."""
    graph = float_graph(Checkpoint.load(folder / "best.pt"), folder / "fused.onnx")
    int8 = calibrate(graph, data, folder / "int8.onnx", size=128, options=PairOptions(weight_bits=weight_bits))
    cpu = load_target("cpu")
    plain = build_engine(graph, cpu, folder / "net.xml", precision="fp32")
    return plain, build_engine(int8, cpu, folder / "net.xml", precision="int8"), int8


def rtx_build(int8: OnnxModel, folder: Path) -> str:
    """How a build for TensorRT-RTX ends."""
    try:
        build_engine(int8, load_target("rtx"), folder / "rtx/net.engine")
    except TsssEdgeError as error:
        return str(error).splitlines()[0]
    return "built"


def measure(
    names: Sequence[str], seeds: Sequence[int], data: Path, out: Path, *, seconds: float, weight_bits: int
) -> tuple[list[Row], Machine]:
    """Build all, score all, then time the first seed of all in one run. Of `seeds` those count that a network was trained with."""
    rows: list[Row] = []
    flat: list[Engine] = []
    for name in names:
        folders = trained(out, name, seeds)
        if len(epochs := {epochs_done(folder) for folder in folders}) > 1:
            raise ArtifactError(f"{name}: its seeds were trained for {sorted(epochs)} epochs; train them alike")
        built = [engines(folder, data, weight_bits) for folder in folders]
        flat += built[0][:2]
        rows.append(
            Row(
                name=name,
                parameters=trained_numbers(Checkpoint.load(folders[0] / "best.pt")),
                epochs=epochs.pop(),
                seeds=tuple(scored(plain, int8, data) for plain, int8, _ in built),
                float_ms=0.0,
                int8_ms=0.0,
                rtx=rtx_build(built[0][2], folders[0]),
            )
        )
        print(rows[-1], flush=True)
    watched = watch_machine(1)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_backend(engine, threads=1)) for engine in flat]
        timed = time_networks(opened, [engine.path.name for engine in flat], duration_s=seconds)
    medians = [float(t.latency_ms.p50) for t in timed]
    pairs = zip(medians[::2], medians[1::2], strict=True)
    return [replace(row, float_ms=a, int8_ms=b) for row, (a, b) in zip(rows, pairs, strict=True)], watched()


def scored(plain: Engine, int8: Engine, data: Path) -> Scores:
    """Both engines on both splits."""

    def miou(engine: Engine, split: str) -> float:
        return float(evaluate(engine.path, data, split).miou)

    return Scores(
        unseen=miou(plain, UNSEEN),
        val=miou(plain, "val"),
        unseen_int8=miou(int8, UNSEEN),
        val_int8=miou(int8, "val"),
    )


def trained_numbers(checkpoint: Checkpoint) -> int:
    """Weights and biases, without the statistics of batch normalisation."""
    return sum(t.numel() for key, t in checkpoint.state().items() if "running" not in key and "num_batches" not in key)
