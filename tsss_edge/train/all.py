"""A dataset and the names of its strong categories -> a trained P-Net: L-Net, classifier, labels, P-Net, in one call."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Checkpoint, atomic_path
from tsss_edge.config import TrainConfig
from tsss_edge.train.classifier import train_classifier
from tsss_edge.train.label import write_labels
from tsss_edge.train.lnet import train_lnet
from tsss_edge.train.pnet import train_pnet


def train_all(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    strong: Sequence[str],
    source: Path | None = None,
    adversarial: bool = True,
    resume: bool = False,
) -> Checkpoint:
    """Run the method into out/{lnet,classifier,labels,pnet}; P-Net's best.pt and log are copied to `out` itself.

    `resume` goes on in the stage that was under way; finished stages are not run again.
    Raises: DataError, ArtifactError: as the stages.
    """
    lnet = train_lnet(config, data, out / "lnet", strong=strong, source=source, resume=resume)
    train_classifier(classifier_config(config), data, out / "classifier", lnet=lnet.path, strong=strong, resume=resume)
    if not (resume and (out / "labels/manifest.json").is_file()):
        write_labels(out, data, out / "labels", strong=strong, device=config.device)
    pnet = train_pnet(
        config,
        data,
        out / "pnet",
        lnet=out / "lnet",
        labels=out / "labels",
        strong=strong,
        adversarial=adversarial,
        resume=resume,
    )
    return _publish(pnet, out)


def classifier_config(config: TrainConfig) -> TrainConfig:
    """The classifier starts from L-Net and learns a few maps: half the epochs are enough."""
    return msgspec.structs.replace(config, epochs=max(1, config.epochs // 2))


def _publish(pnet: Checkpoint, out: Path) -> Checkpoint:
    """Copy P-Net's files to the run folder itself, so that `out` is a run like any other."""
    for name in ("config.toml", "log.jsonl", "last.pt", "best.pt"):
        with atomic_path(out / name) as temporary:
            shutil.copyfile(pnet.path.parent / name, temporary)
    return Checkpoint.load(out / "best.pt")
