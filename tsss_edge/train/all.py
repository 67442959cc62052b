"""A dataset and the names of its strong categories -> a trained P-Net, in one call.

L-Net, classifier, labels Lw; a draft of P-Net, which labels the weak pictures again; P-Net.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.disk import atomic_path
from tsss_edge.label.annotate import LabelConfig
from tsss_edge.label.write import MANIFEST, require_current, settings_of, write_labels
from tsss_edge.ranks import held_for_all, meet, this_process
from tsss_edge.train.classifier import train_classifier
from tsss_edge.train.lnet import train_lnet
from tsss_edge.train.pnet import PLAIN, Switches, train_pnet
from tsss_edge.train.start import masked_val

DRAFT = 0.25  # share of P-Net's epochs that its draft takes


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
    labels: LabelConfig | None = None,
    resume: bool = False,
) -> Checkpoint:
    """Run the method into out/{lnet,classifier,labels,draft,relabels,pnet}; P-Net's best.pt and log are copied to `out`.

    `config.epochs` are P-Net's and its draft's together, so that P-Net sees a picture as often as a supervised network does.

    Args:   source: a set whose masks L-Net learns from, in place of the strong categories' (the 0% protocol).
            relabel: train a draft of P-Net first, for a quarter of its epochs, that labels again.
            lnet_epochs: of L-Net, see `train_labellers`. labels: when a pixel of the first round is sure.
            resume: go on in the stage that was under way; finished stages are not run again. With more epochs than before P-Net
            goes on alone, for labels that are complete would not follow the networks that they came from.
    Raises: DataError, ArtifactError: as the stages. DataError too: no picture of "val" has a mask.
    """
    masked_val(VocDataset.open(data))  # before the hours that P-Net's first measurement is away
    with held_for_all(out, f"{out}: this run folder"):
        networks: dict[str, Any] = {"strong": strong, "source": source, "lnet_epochs": lnet_epochs}
        first_round(config, data, out, **networks, labels=labels, resume=resume)
        return publish(_rounds_of_pnet(config, data, out, strong, switches, relabel=relabel, resume=resume), out)


def _rounds_of_pnet(
    config: TrainConfig,
    data: Path,
    out: Path,
    strong: Sequence[str],
    switches: Switches | None,
    *,
    relabel: bool,
    resume: bool,
) -> Checkpoint:
    if relabel and Supervision(VocDataset.open(data), tuple(strong)).weak_ids("train"):
        second_round(config, data, out, strong=strong, resume=resume)
        return last_pnet(config, data, out, out / "pnet", strong=strong, switches=switches, resume=resume)
    return only_pnet(config, data, out, out / "pnet", strong=strong, switches=switches, resume=resume)


def first_round(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    strong: Sequence[str],
    source: Path | None,
    lnet_epochs: int | None = None,
    labels: LabelConfig | None = None,
    resume: bool,
) -> None:
    """Train out/lnet and out/classifier and let them label, into out/labels. Arguments as `train_all`."""
    train_labellers(config, data, out, strong=strong, source=source, lnet_epochs=lnet_epochs, resume=resume)
    made: dict[str, Any] = {"strong": strong, "source": source, "config": labels, "device": config.device}
    label_once(out, data, out / "labels", resume=resume, **made)


def train_labellers(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    strong: Sequence[str],
    source: Path | None,
    lnet_epochs: int | None = None,
    resume: bool,
) -> None:
    """Train out/lnet and out/classifier. Arguments as `train_all`.

    L-Net takes half of `config.epochs`, or a quarter with `source`, which has more pictures. The classifier takes half of
    L-Net's, or as many with `source`, because without strong pixels it has more to learn.
    """
    of_lnet = lnet_epochs or config.epochs // (4 if source else 2)
    labels = out / "labels" if resume else None
    settings = before_labels(config, of_lnet, out / "lnet", labels)
    lnet = train_lnet(settings, data, out / "lnet", strong=strong, source=source, resume=resume)
    settings = before_labels(config, of_lnet if source else of_lnet // 2, out / "classifier", labels)
    train_classifier(settings, data, out / "classifier", lnet=lnet.path, strong=strong, resume=resume)


def second_round(config: TrainConfig, data: Path, out: Path, *, strong: Sequence[str], resume: bool) -> None:
    """Train out/draft on out/labels by cross-entropy alone, for its share of the epochs, and let it label out/relabels."""
    draft, labels = out / "draft", out / "relabels"
    settings = before_labels(config, draft_epochs(config), draft, labels if resume else None)
    only_pnet(settings, data, out, draft, strong=strong, switches=PLAIN, resume=resume)
    label_once(draft, data, labels, strong=strong, config=settings_of(out), device=config.device, resume=resume)


def only_pnet(config: TrainConfig, data: Path, run: Path, out: Path, **options: Any) -> Checkpoint:
    """P-Net from `first_round`'s networks and labels in `run`, for all epochs. Options: `train_pnet`'s."""
    return train_pnet(config, data, out, lnet=run / "lnet", labels=run / "labels", **options)


def last_pnet(config: TrainConfig, data: Path, run: Path, out: Path, **options: Any) -> Checkpoint:
    """P-Net from `second_round`'s draft and labels in `run`, for the epochs that are left. Options: `train_pnet`'s."""
    settings = with_epochs(config, config.epochs - draft_epochs(config))
    return train_pnet(settings, data, out, lnet=run / "draft", labels=run / "relabels", **options)


def draft_epochs(config: TrainConfig) -> int:
    """The draft's share of P-Net's epochs."""
    return int(config.epochs * DRAFT)


def label_once(run: Path, data: Path, out: Path, *, resume: bool, **options: Any) -> None:
    """`write_labels` with its `options`, unless `out` is complete and is to be kept.

    Raises: ArtifactError: it is kept, but came of other networks or settings.
    """
    if resume and (out / MANIFEST).is_file():
        require_current(out, run, options.get("config"))
    else:
        write_labels(run, data, out, **options)


def before_labels(config: TrainConfig, epochs: int, run: Path, labels: Path | None) -> TrainConfig:
    """`config` of a stage in `run` that labels: for `epochs`, or where its `labels` are complete for as many as it had."""
    if labels is not None and (labels / MANIFEST).is_file() and (run / "last.pt").is_file():
        epochs = int(Checkpoint.load(run / "last.pt").meta.training["epochs"])
    return with_epochs(config, epochs)


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
