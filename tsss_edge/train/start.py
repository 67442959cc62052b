"""What a stage starts from: fresh networks, weights from other files, class weights, the training list and its views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tsss_edge.artifacts import IGNORE, Checkpoint, CheckpointMeta, read_torch
from tsss_edge.config import TrainConfig
from tsss_edge.data.augment import TrainAugment
from tsss_edge.data.supervision import MaskOf
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.models import SegNet, build_model, load_model
from tsss_edge.models.lite import LiteEncoder, from_efficientnet
from tsss_edge.models.pretrained import IMAGENET, imagenet_file
from tsss_edge.models.vgg16 import from_torchvision

ENCODER = "encoder."  # prefix of its tensors in a checkpoint
MAX_CLASS_WEIGHT = 10.0


def fresh_net(config: TrainConfig, *, num_classes: int) -> SegNet:
    """A network whose first weights depend on the seed alone. Raises: ArtifactError: unknown architecture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(config.arch, num_classes=num_classes)


def load_encoder(net: SegNet, config: TrainConfig) -> None:
    """Start the encoder from `config.encoder_weights`: a checkpoint of ours, or a plain file of tensors by name.

    Names are ours (`encoder....`); for vgg16-largefov also torchvision's (`features....`), for the lite architectures
    EfficientNet-PyTorch's (`_conv_stem....`). "imagenet" names the installed package that brings those (models/pretrained.py). An
    empty setting does nothing.
    Raises: ArtifactError: the file is missing, or its tensors are not this encoder's.
            UnavailableError: "imagenet" without the package.
    """
    if not config.encoder_weights:
        return
    path = imagenet_file(config.arch) if config.encoder_weights == IMAGENET else Path(config.encoder_weights)
    own = encoder_tensors(_tensors(path), net.encoder, config)
    if misfit := _misfit(own, net.encoder.state_dict()):
        raise ArtifactError(f"{path}: not weights of the {config.arch} encoder: {misfit}; give a file made for it")
    net.encoder.load_state_dict(own)


def encoder_tensors(state: dict[str, Tensor], encoder: nn.Module, config: TrainConfig) -> dict[str, Tensor]:
    """The tensors of a file that are an encoder's, by our names."""
    if any(name.startswith(ENCODER) for name in state):
        return {name.removeprefix(ENCODER): t for name, t in state.items() if name.startswith(ENCODER)}
    if config.arch == "vgg16-largefov":
        own = {name: t for name, t in state.items() if name.startswith("features.")}
        return from_torchvision(own, config.preprocess.scale) if not _misfit(own, encoder.state_dict()) else own
    return from_efficientnet(state, encoder) if isinstance(encoder, LiteEncoder) else {}


def start_from(net: SegNet, config: TrainConfig) -> None:
    """Start from the run or checkpoint `config.init_from`: every tensor whose name and shape fit. The encoder must fit;
    a decoder or head of another shape stays fresh. Does nothing when the setting is empty.

    Raises: ArtifactError: no such checkpoint, or its encoder does not fit.
    """
    if not config.init_from:
        return
    checkpoint = Checkpoint.load(Path(config.init_from))
    wanted = net.state_dict()
    given = {name.removeprefix("net."): t for name, t in checkpoint.state().items()}  # a classifier wraps its network
    fits = {name: t for name, t in given.items() if name in wanted and t.shape == wanted[name].shape}
    misfit = _misfit(*({n: t for n, t in part.items() if n.startswith(ENCODER)} for part in (fits, wanted)))
    if misfit:
        raise ArtifactError(
            f"{checkpoint.path}: is {checkpoint.meta.arch}, whose encoder does not fit {config.arch}: {misfit}"
        )
    net.load_state_dict(fits, strict=False)


def require_unseen(config: TrainConfig, dataset: VocDataset, strong: Sequence[str]) -> None:
    """Raise ArtifactError when `config.init_from` or `config.encoder_weights` come of masks of categories that are weak here."""
    for start in _starts(config):
        seen = masks_seen(start.meta)
        if weak := [name for name in dataset.classes.names if name in seen and name not in strong]:
            raise ArtifactError(
                f"{start.path}: has seen masks of {', '.join(weak)}, which are weak here; "
                "start from a network that has not, or name them in --strong"
            )


def _starts(config: TrainConfig) -> Iterator[Checkpoint]:
    """The checkpoints of ours among the files that training starts from."""
    if config.init_from:
        yield Checkpoint.load(Path(config.init_from))
    if config.encoder_weights not in ("", IMAGENET):
        path = Path(config.encoder_weights)
        if isinstance(read_torch(path)[1].get("meta"), str):  # else another project's weights
            yield Checkpoint.load(path)


def masks_seen(meta: CheckpointMeta) -> tuple[str, ...]:
    """Names of the categories whose masks a checkpoint learnt from: the strong ones, all of a supervised network."""
    return tuple(meta.classes.names[i] for i in meta.classes.objects) if meta.stage == "supervised" else meta.strong


def _misfit(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """The first tensor that is missing, too many, or of another shape, in words; "" when all fit."""
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given:
            return f"it holds no {name}"
        if name not in wanted:
            return f"its {name} belongs to another network"
        if given[name].shape != wanted[name].shape:
            return f"{name} is {tuple(given[name].shape)}, expected {tuple(wanted[name].shape)}"
    return ""


def _tensors(path: Path) -> dict[str, Tensor]:
    _, content = read_torch(path)
    state = content.get("state", content)
    bad = [k for k, v in state.items() if not isinstance(v, Tensor) or not bool(v.float().isfinite().all())]
    if bad:
        raise ArtifactError(f"{path}: {bad[0]} is not a tensor of finite numbers; give a file of weights by name")
    return dict(state)


def take_over(net: SegNet, checkpoint: Checkpoint, arch: str) -> SegNet:
    """Copy encoder, decoder and objectness head of a checkpoint into `net`; the class head stays fresh.

    Raises: ArtifactError: another architecture, or weights that are NaN.
    """
    if checkpoint.meta.arch != arch:
        raise ArtifactError(
            f"{checkpoint.path}: is {checkpoint.meta.arch}, this run is {arch}; one run keeps one architecture"
        )
    source = load_model(checkpoint)
    net.encoder.load_state_dict(source.encoder.state_dict())
    net.decoder.load_state_dict(source.decoder.state_dict())
    if net.object_head is not None and source.object_head is not None:
        net.object_head.load_state_dict(source.object_head.state_dict())
    return net


def augmentation(config: TrainConfig) -> TrainAugment:
    """The random views that the settings ask for."""
    return TrainAugment(config.view_hw, config.preprocess, config.scale_range, color=config.color)


def training_split(dataset: VocDataset) -> tuple[str, ...]:
    """Ids of "train", with "val" known to be there too. Raises: DataError: one of them is missing or empty."""
    dataset.ids("val")
    return dataset.ids("train")


def masked_val(dataset: VocDataset) -> tuple[str, ...]:
    """Ids of "val" that have a mask: a picture with an image-level label alone is not measured.

    Raises: DataError: none has, or none of them has a labelled pixel.
    """
    ids = dataset.ids("val")
    found = dataset.masked(ids)
    if not found:
        raise DataError(
            f"{dataset.root}: none of the {len(ids)} pictures of val has a mask, so nothing can be measured; add some"
        )
    if not any((dataset.mask(image_id) != IGNORE).any() for image_id in found):
        raise DataError(f"{dataset.root}: every pixel of val's masks is 255, so nothing can be measured; label some")
    return found


def require_masks(dataset: VocDataset, ids: Sequence[str]) -> None:
    """Raise DataError unless every picture has a mask: the training that follows has no other teacher."""
    there = set(dataset.masked(ids))
    if without := [image_id for image_id in ids if image_id not in there]:
        raise DataError(
            f"{dataset.root}: {len(without)} of {len(ids)} training pictures have no mask ({without[0]}, ...); take them out of "
            "train.txt, or learn from image-level labels too with `tsss-edge train all`"
        )


def require_background(dataset: VocDataset, what: str) -> None:
    """Raise DataError for a set in which every pixel is an object: there is nothing to tell objects from."""
    if not dataset.classes.background:
        raise DataError(
            f"{dataset.root}: has no background class, so {what} has nothing to tell objects from; "
            "use `tsss-edge train supervised`, or name a background first in classes.txt"
        )


def class_weights(dataset: VocDataset, ids: Sequence[str], mask_of: MaskOf, power: float) -> Tensor | None:
    """(K,) weights `(median frequency / frequency) ** power`, at most 10; None for power 0 (plain cross-entropy).

    Power 1 is median frequency balancing (arXiv 1411.4734); classes without pixels weigh 1.
    """
    if power == 0:
        return None
    counts = np.zeros(IGNORE + 1, np.int64)
    for image_id in ids:
        counts += np.bincount(mask_of(image_id).ravel(), minlength=IGNORE + 1)
    seen = counts[: len(dataset.classes)].astype(np.float64)
    ratio = np.divide(np.median(seen[seen > 0]), seen, out=np.ones_like(seen), where=seen > 0)
    return torch.from_numpy(np.minimum(ratio**power, MAX_CLASS_WEIGHT)).float()
