"""The P-Nets of a finished benchmark seed label again and train on, and the supervised network trains on as long.

    python scripts/second_round.py benchmarks/photos-stage.toml voc_photos runs/stage/seed-0 --out runs/second --folds 0 A B

Their labels are measured by the peaks of what an image-level label names (`peak_floor` of the benchmark file) and count above 0.5;
then half of the file's epochs of P-Net follow, from the network that labelled. What is there is kept; docs/results/photos.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Checkpoint
from tsss_edge.label.write import settings_of
from tsss_edge.reproduce.benchmark import ZERO, Benchmark
from tsss_edge.reproduce.foldscore import net_score
from tsss_edge.reproduce.results import read_benchmark
from tsss_edge.train.all import label_once, with_epochs
from tsss_edge.train.pnet import train_pnet
from tsss_edge.train.supervised import train_supervised

SUPERVISED = "supervised"


def main() -> None:
    """Do one fold after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="benchmark file")
    parser.add_argument("data", type=Path)
    parser.add_argument("seed_run", type=Path, help="OUT/seed-N of `reproduce --config`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", nargs="+", default=[SUPERVISED, ZERO], help="names of folds, 0, or supervised")
    parser.add_argument("--sure-above", type=float, default=0.5)
    given = parser.parse_args()
    benchmark = read_benchmark(given.config, given.data)
    for fold in given.folds:
        done = again(benchmark, fold, given.data, given.seed_run, given.out, given.sure_above)
        score = net_score(done, given.data, benchmark.score)
        shown = ("background", *benchmark.score)
        classes = ", ".join(
            f"{name} {iou:.1f}" for name, iou in score.per_class.items() if name in shown and iou is not None
        )
        print(f"{fold}: {score.headline:.2f}, all {score.miou:.2f} ({classes})", flush=True)


def again(benchmark: Benchmark, fold: str, data: Path, seed_run: Path, out: Path, sure_above: float) -> Checkpoint:
    """One fold's second round, or the same epochs more for the supervised network."""
    config = with_epochs(benchmark.train, benchmark.epochs.pnet // 2)
    if fold == SUPERVISED:
        config = msgspec.structs.replace(config, init_from=str(seed_run / SUPERVISED))
        return train_supervised(config, data, out / SUPERVISED, resume=True)
    first, labels = seed_run / fold / "pnet", out / fold / "labels"
    strong = () if fold == ZERO else benchmark.folds[fold]
    settings = msgspec.structs.replace(settings_of(seed_run / fold), sure_above=sure_above)
    label_once(first, data, labels, strong=strong, config=settings, resume=True)
    switches = benchmark.switches
    return train_pnet(
        config, data, out / fold / "pnet", lnet=first, labels=labels, strong=strong, switches=switches, resume=True
    )


if __name__ == "__main__":
    main()
