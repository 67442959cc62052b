"""Foreign ONNX files -> import, calibrate, build (cpu and rtx), parity, stream; one JSON with a row each.

    python scripts/own_model.py --data camvid --video street.mp4 --out docs/results/own-model.json NET.onnx...

A file of one channel gets two classes; `--mean`, `--std` as ImageNet's. What fails is a row with its reason. The logits'
signal-to-noise ratio is that of the INT8 engine against the imported float graph, on the val pictures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pages import watch_machine

from tsss_edge.artifacts import Classes, Engine, OnnxModel
from tsss_edge.backends import open_backend
from tsss_edge.bench import bench_engine
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import TsssEdgeError
from tsss_edge.export.build import build_engine
from tsss_edge.export.foreign import import_onnx
from tsss_edge.export.foreign.normalise import Normalisation
from tsss_edge.files import write_json
from tsss_edge.kernels.preprocess import preprocess
from tsss_edge.onnxgraph.qdq import PairOptions
from tsss_edge.parity import check_parity
from tsss_edge.scoring import evaluate

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
UNIT = Normalisation()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--two-classes", nargs="*", default=[], help="stems of networks with one channel or two")
    parser.add_argument("--trained", nargs="*", default=[], help="stems of networks whose mIoU means something")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--weight-bits", type=int, default=8, help="7 where the CPU has no VNNI")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, ours and benchmark_app's in turn")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    watched = watch_machine(1)
    for path in args.networks:
        rows.append(row(path, args))
        content = {
            "date": date.today().isoformat(),
            "machine": watched(),
            "networks": rows,
        }
        write_json(args.out, content)
        print(rows[-1], flush=True)


def row(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All steps of one network, as far as they go."""
    facts: dict[str, Any] = {
        "network": path.stem,
        "trained": path.stem in args.trained,
        "weight_bits": args.weight_bits,
    }
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(path, Path(folder), args, facts)
        needed = (steps.bring_in, steps.quantize, steps.build_cpu)
        for step in (*needed, steps.build_rtx, steps.prove, steps.compare, steps.time, steps.stream):
            facts[step.__name__] = attempt(step)
            if step in needed and facts[step.__name__] != "ok":
                break
    return facts


def attempt(step: Callable[[], None]) -> str:
    try:
        step()
    except TsssEdgeError as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


class Steps:
    """The walk of docs/own-model.md for one file."""

    def __init__(self, path: Path, folder: Path, args: argparse.Namespace, facts: dict[str, Any]) -> None:
        self.path, self.folder, self.args, self.facts = path, folder, args, facts
        self.two = path.stem in args.two_classes
        self.dataset = VocDataset.open(args.data)
        self.data = binary_set(self.dataset, folder / "two") if self.two else args.data
        self.float, self.int8 = folder / "net.onnx", folder / "net.int8.onnx"

    def bring_in(self) -> None:
        classes = Classes(names=("background", "object")) if self.two else self.dataset.classes
        how = UNIT if self.path.stem.startswith("tf") else IMAGENET
        pictures = [self.dataset.image_path(i) for i in self.dataset.ids("val")[:4]]
        report = import_onnx(self.path, self.float, classes=classes, how=how, check_images=pictures)
        stride = [side / points for side, points in zip(report.size_hw, report.grid_hw, strict=True)]
        self.facts |= {"found": list(report.found), "head": report.head, "stride": stride[0], "size_hw": report.size_hw}
        self.facts |= {"pixels": report.check.pixels, "different": report.check.different}

    def quantize(self) -> None:
        options = PairOptions(weight_bits=self.args.weight_bits)
        calibrate(OnnxModel.load(self.float), self.data, self.int8, size=self.args.pictures, options=options)

    def build_cpu(self) -> None:
        self.engine = build_engine(self.int8, load_target("cpu"), self.folder / "net.xml")
        self.facts["convolutions"] = self.engine.record.realised

    def build_rtx(self) -> None:
        build_engine(self.int8, load_target("rtx"), self.folder / "rtx/net.engine")

    def prove(self) -> None:
        report = check_parity(self.engine, self.float, self.data, max_drop=100, min_reference=0)
        self.facts |= {
            "miou_reference": report.miou_reference,
            "miou_engine": report.miou_engine,
            "drop": report.miou_drop,
        }
        self.facts |= {"agreement": report.pixel_agreement, "images": report.images}
        if self.facts["trained"]:  # the same INT8 graph without this CPU's 16-bit sums
            self.facts["miou_onnxruntime"] = evaluate(self.int8, self.data, threads=1).miou

    def compare(self) -> None:
        if self.facts["head"] != "logits":
            return
        signal = noise = 0.0
        with open_backend(self.float, threads=1) as want, open_backend(self.engine, threads=1) as got:
            for image_id in self.dataset.ids("val"):
                picture = preprocess(self.dataset.image(image_id), want.preprocess, bgr=False)[None]
                a = np.array(want.infer(picture)["logits"], np.float64)
                b = np.array(got.infer(picture)["logits"], np.float64)
                signal, noise = signal + float((a * a).sum()), noise + float(((a - b) ** 2).sum())
        self.facts["logit_snr_db"] = 10 * float(np.log10(signal / max(noise, 1e-30)))

    def time(self) -> None:
        report = bench_engine(Engine.load(self.engine.path), duration_s=self.args.seconds, threads=1, end_to_end=False)
        if report.benchmark_app is not None:  # two latencies of other moments would say something else
            self.facts["benchmark_app_ratio"] = report.benchmark_app.ratio

    def stream(self) -> None:
        from tsss_edge.stream.live_loop import stream

        report = stream(
            self.engine.path, str(self.args.video), [str(self.folder / "out.mp4")],
            reference=self.float, parity_every=10, max_frames=self.args.frames, threads=1, force=not self.facts["trained"],
        )  # fmt: skip
        self.facts["streamed"] = msgspec.to_builtins(report).get("frames")


def binary_set(dataset: VocDataset, out: Path) -> Path:
    """The same pictures with two classes: Road (or the last class) is the object."""
    from tsss_edge.data.voc import write_mask

    names = dataset.classes.names
    index = names.index("Road") if "Road" in names else len(names) - 1
    for folder in ("SegmentationClass", "ImageSets/Segmentation"):
        (out / folder).mkdir(parents=True)
    (out / "JPEGImages").symlink_to((dataset.root / "JPEGImages").resolve())
    (out / "classes.txt").write_text("background\nobject\n")
    for split in ("train", "val"):
        (out / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(dataset.ids(split)) + "\n")
        for image_id in dataset.ids(split):
            mask = dataset.mask(image_id)
            write_mask(
                out / f"SegmentationClass/{image_id}.png", np.where(mask == 255, 255, mask == index).astype(np.uint8)
            )
    return out


if __name__ == "__main__":
    main()
