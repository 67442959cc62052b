"""Peak memory and time of `data check`, `eval`, `parity` and `calibrate` on sets of 1,000 to 100,000 pictures -> JSON lines.

python scripts/scale_sets.py net.int8.xml --graph net.onnx --reference runs/net --pictures 1000 10000 --out sets.jsonl

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
    calibrated = ["--data", str(data), "--size", str(count), "--method", "minmax", "--out", str(out / f"{count}.onnx")]
    return {
        "data check": [*TSSS, "data", "check", str(data), "--split", "val"],
        "eval": [*TSSS, "eval", str(args.engine), "--data", str(data)],
        "parity": [*TSSS, "parity", str(args.engine), "--reference", str(args.reference), "--data", str(data), "--allow-leak"],
        "calibrate": [*TSSS, "calibrate", str(args.graph), *calibrated],
    }  # fmt: skip


def main() -> None:
    """Measure and write a JSON line a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--graph", type=Path, required=True, help="FP32 ONNX file, for calibrate")
    parser.add_argument("--reference", type=Path, required=True, help="checkpoint, for parity")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--only", nargs="*", help="of: data check, eval, parity, calibrate")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
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
