"""Accuracy over milliseconds on a VOC-layout set of street scenes: train, quantise, time, draw.

PYTHONPATH=scripts python -m front train --data camvid --leave-out 0001TP --out runs/front [--epochs 60] [--seeds 0 1] [NETWORK...]
PYTHONPATH=scripts python -m front page --data camvid --leave-out 0001TP --out runs/front --table docs/results/front-camvid.md

`train` goes on where it stopped, and two of them with other networks may run side by side. `page` measures what was trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from pages import TOOL, command, today, write_page, write_picture

from front.networks import OTHERS, OURS, register
from front.page import draw, page
from front.study import Study, measure, run_folder, split_by_sequence, train_one, trivial
from front.variants import VARIANTS

NAMES = (*OURS, *OTHERS)
KNOWN = (*NAMES, *VARIANTS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "page"])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(KNOWN)}; none: all but the last three")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--leave-out", required=True, help="what the names of the sequence start with that no network sees"
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a training each; the page has their mean")
    parser.add_argument("--table", type=Path, help="the page to write; its picture and JSON twin lie beside it")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, an engine")
    parser.add_argument("--weight-bits", type=int, default=8, help="7 where the CPU has no VNNI")
    args = parser.parse_args(arguments)
    names = args.networks or NAMES
    if unknown := set(names) - set(KNOWN):
        parser.error(f"no network {', '.join(sorted(unknown))}; choose from {', '.join(KNOWN)}")
    register()
    torch.set_num_threads(1)
    data = split_by_sequence(args.data, args.out / "data", args.leave_out)
    if args.step == "train":
        for seed, name in product(args.seeds, names):
            train_one(name, data, run_folder(args.out, name, seed), epochs=args.epochs, seed=seed)
        return
    if args.table is None:
        parser.error("page needs --table FILE.md")
    rows, machine = measure(names, args.seeds, data, args.out, seconds=args.seconds, weight_bits=args.weight_bits)
    study = Study(
        tuple(rows), args.leave_out, trivial(data), machine, today(), TOOL, command("front").replace("scripts/", "-m ")
    )
    picture = args.table.with_suffix(".png")
    write_picture(draw(study), picture)
    write_page(args.table, page(study, picture.name), study)


if __name__ == "__main__":
    main()
