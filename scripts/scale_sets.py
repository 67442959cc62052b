"""Peak memory and time of `data check`, `eval`, `parity` and `calibrate` on sets of 1,000 to 100,000 pictures -> JSON lines.

python scripts/scale_sets.py net.int8.xml --graph net.onnx --reference runs/net --pictures 1000 --out sets.jsonl
python scripts/scale_sets.py --stand-in --pictures 1000 10000 100000 --out sets.jsonl     a network that costs next to nothing

A set is links to the pictures of `data synth`, so that only the number of pictures grows. Every command is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TSSS = (sys.executable, "-m", "tsss_edge")
DIFFERENT = 16  # pictures that the links lead to


def make_set(root: Path, source: Path, count: int) -> Path:
    """`count` hard links to the first pictures of a set, in the lists train and val."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text((source / "classes.txt").read_text())
    pictures = sorted((source / "JPEGImages").iterdir())[:DIFFERENT]
    for n in range(count):
        picture = pictures[n % len(pictures)]
        os.link(picture, root / f"JPEGImages/p{n:06d}{picture.suffix}")
        os.link(source / f"SegmentationClass/{picture.stem}.png", root / f"SegmentationClass/p{n:06d}.png")
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"p{n:06d}\n" for n in range(count)))
    return root


def peak_of(command: list[str]) -> dict[str, Any]:
    """Peak resident memory in MiB, wall and CPU seconds of a command. Raises: SystemExit: it failed."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3):  # 3: the gate of a network that was hardly trained
        raise SystemExit(f"failed: {' '.join(command)}")
    return {
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
        "seconds": round(time.monotonic() - start, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
    }


def commands(args: argparse.Namespace, data: Path, count: int, out: Path) -> dict[str, list[str]]:
    """What is measured, by name."""
    if args.stand_in:
        own = [sys.executable, __file__, "--out", str(out), "--run"]
        check = {"data check": [*TSSS, "data", "check", str(data), "--split", "val"]}
        return check | {f"{what}, stand-in": [*own, what, str(data)] for what in ("eval", "parity")}
    calibrated = ["--data", str(data), "--size", str(count), "--method", "minmax", "--out", str(out / f"{count}.onnx")]
    return {
        "data check": [*TSSS, "data", "check", str(data), "--split", "val"],
        "eval": [*TSSS, "eval", str(args.engine), "--data", str(data)],
        "parity": [*TSSS, "parity", str(args.engine), "--reference", str(args.reference), "--data", str(data), "--allow-leak"],
        "calibrate": [*TSSS, "calibrate", str(args.graph), *calibrated],
    }  # fmt: skip


def stand_in(what: str, data: Path) -> None:
    """What `eval` and `parity` do with a set, around networks that answer by brightness: one, or two side by side and the verdict."""
    from tsss_edge.artifacts import Classes, Preprocess
    from tsss_edge.backends.fake import FakeBackend
    from tsss_edge.data.voc import VocDataset
    from tsss_edge.parity.measure import StageCounts, measure
    from tsss_edge.parity.verdict import judge
    from tsss_edge.scoring import evaluate

    dataset = VocDataset.open(data)
    network = FakeBackend(Classes(names=dataset.classes.names), Preprocess(size_hw=(64, 64)))
    if what == "eval":
        evaluate(network, data)
        return
    stages, ids = [StageCounts(name, name, network) for name in ("reference", "engine")], dataset.ids("val")
    profile = measure(stages, dataset, ids, boundary_px=3)
    judge(
        stages, names=dataset.classes.names, max_drop=0.5, leak=0, allow_leak=False, allow_gain=False, boundary_px=3, split="val",
        data_sha256=dataset.split_hash("val"), notes=(), provenance={}, profile=profile,
    )  # fmt: skip


def main() -> None:
    """Measure and write a JSON line a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, nargs="?")
    parser.add_argument("--graph", type=Path, help="FP32 ONNX file, for calibrate")
    parser.add_argument("--reference", type=Path, help="checkpoint, for parity")
    parser.add_argument("--stand-in", action="store_true", help="no engine: what the commands do around a network")
    parser.add_argument("--run", nargs=2, metavar=("WHAT", "DATA"), help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--only", nargs="*", help="of: data check, eval, parity, calibrate")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.run:
        return stand_in(args.run[0], Path(args.run[1]))
    if not args.stand_in and None in (args.engine, args.graph, args.reference):
        parser.error("give an engine, --graph and --reference, or --stand-in")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synth = [
            *TSSS,
            "data",
            "synth",
            "--out",
            str(folder / "synth"),
            "--train",
            str(DIFFERENT),
            "--val",
            "1",
            "--size",
            "64",
        ]
        subprocess.run(synth, check=True, stdout=subprocess.DEVNULL)
        for count in args.pictures:
            data = make_set(folder / str(count), folder / "synth", count)
            for what, command in commands(args, data, count, folder).items():
                if not args.only or what in args.only:
                    row = {"what": what, "pictures": count, **peak_of(command)}
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
