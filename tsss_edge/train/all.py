"""A dataset and the names of its strong categories -> a trained P-Net: L-Net, classifier, labels, P-Net, in one call."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Checkpoint, atomic_path
from tsss_edge.config import TrainConfig
from tsss_edge.train.classifier import train_classifier
from tsss_edge.train.distributed import meet, this_process
from tsss_edge.train.label import write_labels
from tsss_edge.train.lnet import train_lnet
from tsss_edge.train.pnet import Switches, train_pnet


def train_all(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    strong: Sequence[str],
    source: Path | None = None,
    switches: Switches | None = None,
    lnet_epochs: int | None = None,
    resume: bool = False,
) -> Checkpoint:
    """Run the method into out/{lnet,classifier,labels,pnet}; P-Net's best.pt and log are copied to `out` itself.

    Args:   source: a set whose masks L-Net learns from, in place of the strong categories' (the 0% protocol).
            lnet_epochs: of L-Net, which sees the strong images only (default: as P-Net); the classifier takes a third.
            resume: go on in the stage that was under way; finished stages are not run again.
    Raises: DataError, ArtifactError: as the stages.
    """
    long = msgspec.structs.replace(config, epochs=lnet_epochs or config.epochs)
    short = continued(long)
    lnet = train_lnet(short if source else long, data, out / "lnet", strong=strong, source=source, resume=resume)
    train_classifier(short, data, out / "classifier", lnet=lnet.path, strong=strong, resume=resume)
    if this_process().writes and not (resume and (out / "labels/manifest.json").is_file()):
        write_labels(out, data, out / "labels", strong=strong, device=config.device)
    meet()
    folders = {"lnet": out / "lnet", "labels": out / "labels"}
    pnet = train_pnet(config, data, out / "pnet", strong=strong, switches=switches, resume=resume, **folders)
    return publish(pnet, out)


def continued(config: TrainConfig) -> TrainConfig:
    """A third of the epochs: for the classifier, which goes on from L-Net, and for L-Net on a source set, which has about
    three times as many pictures as a set has strong ones."""
    return msgspec.structs.replace(config, epochs=max(1, config.epochs // 3))


def publish(checkpoint: Checkpoint, out: Path) -> Checkpoint:
    """Copy a stage's files to the run folder `out` itself, so that `out` is a run like any other."""
    for name in ("config.toml", "log.jsonl", "last.pt", "best.pt") if this_process().writes else ():
        with atomic_path(out / name) as temporary:
            shutil.copyfile(checkpoint.path.parent / name, temporary)
    meet()
    return Checkpoint.load(out / "best.pt")
