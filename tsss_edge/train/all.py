"""A dataset and the names of its strong categories -> a trained P-Net, in one call.

L-Net, classifier, labels Lw; a draft of P-Net, which labels the weak pictures again; P-Net.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tsss_edge.artifacts import Checkpoint, atomic_path
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.train.classifier import train_classifier
from tsss_edge.train.distributed import meet, this_process
from tsss_edge.train.label import settings_of, write_labels
from tsss_edge.train.lnet import train_lnet
from tsss_edge.train.pnet import Switches, train_pnet

PLAIN = Switches(adversarial=False, mean_teacher=False)


def train_all(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    strong: Sequence[str],
    source: Path | None = None,
    switches: Switches | None = None,
    relabel: bool = True,
    lnet_epochs: int | None = None,
    resume: bool = False,
) -> Checkpoint:
    """Run the method into out/{lnet,classifier,labels,draft,relabels,pnet}; P-Net's best.pt and log are copied to `out`.

    Args:   source: a set whose masks L-Net learns from, in place of the strong categories' (the 0% protocol).
            relabel: train a draft of P-Net first, for a third of its epochs, that labels again (see train/relabel.py).
            lnet_epochs: of L-Net, which sees the strong images only (default: as P-Net); the classifier takes a third,
                and with `source` each of them half.
            resume: go on in the stage that was under way; finished stages are not run again.
    Raises: DataError, ArtifactError: as the stages.
    """
    first_round(config, data, out, strong=strong, source=source, lnet_epochs=lnet_epochs, resume=resume)
    start, labels = out / "lnet", out / "labels"
    if relabel and any_weak(data, strong):
        start, labels = second_round(config, data, out, strong=strong, resume=resume)
    pnet = train_pnet(
        config, data, out / "pnet", lnet=start, labels=labels, strong=strong, switches=switches, resume=resume
    )
    return publish(pnet, out)


def first_round(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    strong: Sequence[str],
    source: Path | None,
    lnet_epochs: int | None = None,
    resume: bool,
) -> None:
    """Train out/lnet and out/classifier and let them label, into out/labels. Arguments as `train_all`.

    A source set has about three times as many pictures as a set has strong ones: L-Net takes half the epochs there. So does
    the classifier, which otherwise takes a third; without strong pixels it has more to learn.
    """
    total = lnet_epochs or config.epochs
    of_lnet, of_classifier = (total // 2, total // 2) if source else (total, total // 3)
    lnet = train_lnet(with_epochs(config, of_lnet), data, out / "lnet", strong=strong, source=source, resume=resume)
    settings = with_epochs(config, of_classifier)
    train_classifier(settings, data, out / "classifier", lnet=lnet.path, strong=strong, resume=resume)
    label_once(out, data, out / "labels", strong=strong, source=source, device=config.device, resume=resume)


def second_round(
    config: TrainConfig, data: Path, out: Path, *, strong: Sequence[str], resume: bool
) -> tuple[Path, Path]:
    """Train out/draft on out/labels by cross-entropy alone, for a third of the epochs, and let it label again.

    Returns: P-Net's start and its labels, out/draft and out/relabels.
    """
    draft, relabels = out / "draft", out / "relabels"
    folders = {"lnet": out / "lnet", "labels": out / "labels"}
    train_pnet(
        with_epochs(config, config.epochs // 3), data, draft, strong=strong, switches=PLAIN, resume=resume, **folders
    )
    label_once(draft, data, relabels, strong=strong, config=settings_of(out), device=config.device, resume=resume)
    return draft, relabels


def label_once(run: Path, data: Path, out: Path, *, resume: bool, **options: Any) -> None:
    """`write_labels` with its `options`, unless `out` is complete and is to be kept. Under torchrun one process writes, the
    others wait."""
    if this_process().writes and not (resume and (out / "manifest.json").is_file()):
        write_labels(run, data, out, **options)
    meet()


def any_weak(data: Path, strong: Sequence[str]) -> bool:
    """Whether a training picture is weak."""
    return bool(Supervision(VocDataset.open(data), tuple(strong)).weak_ids("train"))


def with_epochs(config: TrainConfig, epochs: int) -> TrainConfig:
    """The same settings for another number of epochs, at least one."""
    return msgspec.structs.replace(config, epochs=max(1, epochs))


def publish(checkpoint: Checkpoint, out: Path) -> Checkpoint:
    """Copy a stage's files to the run folder `out` itself, so that `out` is a run like any other."""
    for name in ("config.toml", "log.jsonl", "last.pt", "best.pt") if this_process().writes else ():
        with atomic_path(out / name) as temporary:
            shutil.copyfile(checkpoint.path.parent / name, temporary)
    meet()
    return Checkpoint.load(out / "best.pt")
