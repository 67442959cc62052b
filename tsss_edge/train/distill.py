"""Photographs without labels + a network that has seen many more -> the encoder of another one that sees alike.

lite0 knows photographs but is slow for its FLOPs where depthwise convolutions are; plain ones are quick everywhere. So a student
learns what the teacher's encoder says at strides 8, 16 and 32. Channels that differ (edge-s, edge-m), and features that end in a ReLU
where the teacher's do not, go through 1x1 convolutions that are left behind. Where the two are built alike (`plain0`: lite0 with
plain blocks), each block can learn by itself first to give the teacher's output for the teacher's input, as LANA does (ECCV 2022),
all blocks in one pass. It does not pay (docs/training.md), so it is off unless asked for.
"""
# Letters: N batch, C channel, H, W network input.

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.augment import TrainAugment
from tsss_edge.data.photographs import Photographs
from tsss_edge.errors import ArtifactError
from tsss_edge.frozen import encoder_of
from tsss_edge.models import SegNet, build_model, load_model, network_input, pick_device
from tsss_edge.models.lite import LiteEncoder, blocks_of
from tsss_edge.models.pretrained import IMAGENET
from tsss_edge.ranks import gathered, this_process
from tsss_edge.scoring import Views
from tsss_edge.train.distributed import average_gradients
from tsss_edge.train.loader import Batch, Samples
from tsss_edge.train.loop import Moment, Stage, train
from tsss_edge.train.start import fresh_net, load_encoder, masks_seen

COLOR, SCALES = 0.5, (0.5, 2.0)  # of the augmentation, stronger than where labels must stay true
NOT_TAKEN = (  # settings of networks that start elsewhere, learn from labels, or choose how strong their views are
    *("freeze", "init_from", "encoder_weights", "encoder_lr", "teachers"),
    *("jaccard", "balance", "loss_stride", "color", "scale_range", "views"),
)
JUDGED = 64  # validation pictures that the error is measured on


def train_distilled(
    config: TrainConfig,
    data: Sequence[Path],
    out: Path,
    *,
    teacher: str = IMAGENET,
    blocks_first: float = 0.0,
    resume: bool = False,
) -> Checkpoint:
    """Train the encoder of `config.arch` to see as the teacher's does. Its decoder and head stay fresh: go on with
    `--init-from OUT`.

    Args:    data: sets in VOC layout; their masks are not opened. The first needs "val" for the metric.
             teacher: "imagenet" (lite0 with its ImageNet weights), or a run or checkpoint.
             blocks_first: share of training in which blocks learn by themselves, where student and teacher have the same ones.
    Metrics: `feature_error`, mean over the strides of squared error / variance on validation pictures; 0 is the teacher, 1 a
             student that always says the mean. The newest weights are kept.
    Raises:  DataError: unusable data. ArtifactError: no such teacher, `out` is another run, settings that a student does not take.
             UnavailableError: no weights.
    """
    plain = TrainConfig()
    if given := [name for name in NOT_TAKEN if getattr(config, name) != getattr(plain, name)]:
        raise ArtifactError(
            f"a student starts fresh, learns as a whole, from features alone, and sees views of its own strength; leave "
            f"{', '.join(given)} out of its settings"
        )
    photographs = Photographs.of(data)
    net = fresh_net(config, num_classes=0)
    guide, seen = load_teacher(teacher, config)
    guide.to(pick_device(config.device)).eval().requires_grad_(False)
    student = Student(net, guide, config)
    views = Views(photographs, photographs.ids("val")[:JUDGED], config.preprocess)
    stage = Stage(
        name="distilled",
        net=net,
        samples=Samples(
            photographs,
            photographs.ids("train"),
            photographs.nothing,
            TrainAugment(config.view_hw, config.preprocess, SCALES, color=COLOR),
            batch=config.batch,
            seed=config.seed,
        ),
        step=DistillStep(student, guide, config, blocks_first),
        strong=seen,  # what the teacher learnt from masks, the student learns from it
        validate=lambda averaged: {"feature_error": feature_error(averaged, student, guide, views)},
        options={"blocks_first": blocks_first},
        beside={"adapters": student.adapters, "adapters_optimizer": student.optimizer},
    )
    return train(stage, config, out, resume=resume)


def load_teacher(teacher: str, config: TrainConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """The encoder that is learned from, and the categories whose masks it has seen.

    Raises: ArtifactError, UnavailableError: as `train_distilled`.
    """
    if teacher != IMAGENET:
        checkpoint = Checkpoint.load(Path(teacher))
        if checkpoint.meta.stage == "classifier":
            raise ArtifactError(f"{checkpoint.path}: is a classifier; give the L-Net or P-Net that belongs to it")
        return encoder_of(load_model(checkpoint)), masks_seen(checkpoint.meta)
    net = build_model("lite0", num_classes=0)
    load_encoder(net, msgspec.structs.replace(config, arch="lite0", encoder_weights=IMAGENET))
    return encoder_of(net), ()


class Student:
    """The network that learns, and the 1x1 convolutions that bring its features to the teacher's channels and range."""

    def __init__(self, net: SegNet, guide: nn.Module, config: TrainConfig) -> None:
        self.net = net
        with torch.no_grad():
            x = torch.zeros(1, 3, 64, 64)
            ours = [f.shape[1] for f in net.eval().encoder(x)]
            theirs = [f.shape[1] for f in guide(x.to(next(guide.parameters()).device))]
        same_range = isinstance(net.encoder, LiteEncoder) == isinstance(guide, LiteEncoder)  # all others end in a ReLU
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1)
            self.adapters = nn.ModuleList(
                nn.Identity() if a == b and same_range else nn.Conv2d(a, b, 1)
                for a, b in zip(ours, theirs, strict=True)
            )
        learnt = list(self.adapters.parameters()) or [nn.Parameter(torch.zeros(1))]
        self.optimizer = torch.optim.Adam(learnt, lr=config.lr)
        mine, its = blocks_of(net.encoder), blocks_of(guide)
        built_alike = len(mine) == len(its) and ours == theirs  # else there is nothing to learn block by block
        self.pairs = list(zip(mine, its, strict=True)) if built_alike else []

    def adapted(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features in the teacher's channels."""
        return [adapter(f) for adapter, f in zip(self.adapters, features, strict=True)]

    def adapt(self, features: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        """One step of the 1x1 convolutions alone, on detached features; the loop's optimizer does not know them."""
        if not any(True for _ in self.adapters.parameters()):
            return
        self.adapters.requires_grad_(True)
        errors = [relative_error(a, b) for a, b in zip(self.adapted(features), wanted, strict=True)]
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(errors).mean().backward()  # type: ignore[no-untyped-call]
        average_gradients(self.adapters.parameters())
        self.optimizer.step()
        self.adapters.requires_grad_(False)


class DistillStep:
    """All blocks together; by themselves in the first share `blocks_first`, where student and teacher have the same ones."""

    def __init__(self, student: Student, guide: nn.Module, config: TrainConfig, blocks_first: float) -> None:
        self._student, self._guide, self._config = student, guide, config
        self._blocks_first = blocks_first if student.pairs else 0.0

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        x = network_input(batch.images, self._config.preprocess.scale)
        if moment.done < self._blocks_first:
            loss = self._blocks(x)
            return loss, {"blocks": loss}
        with torch.no_grad():
            wanted = self._guide(x)
        features = self._student.net.encoder(x)
        self._student.adapt([f.detach() for f in features], wanted)
        adapted = self._student.adapted(features)
        errors = [relative_error(a, b) for a, b in zip(adapted, wanted, strict=True)]
        loss = torch.stack(errors).mean()
        return loss, {f"stride{8 << i}": error for i, error in enumerate(errors)}

    def _blocks(self, x: Tensor) -> Tensor:
        """Each block on what the teacher's block was given."""
        given: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            given[module] = (inputs[0], output)

        hooks = [theirs.register_forward_hook(keep) for _, theirs in self._student.pairs]
        with torch.no_grad():
            self._guide(x)
        for hook in hooks:
            hook.remove()
        errors = [relative_error(ours(given[theirs][0]), given[theirs][1]) for ours, theirs in self._student.pairs]
        return torch.stack(errors).mean()


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of (N,C,h,w), as a share of the variance of what is wanted."""
    wanted = wanted.float()
    return (found.float() - wanted).square().mean() / wanted.var().clamp(min=1e-6)


@torch.inference_mode()
def feature_error(net: nn.Module, student: Student, guide: nn.Module, views: Views) -> float:
    """Mean of `relative_error` over strides and batches of `views`; by all processes together."""
    device = next(guide.parameters()).device
    mine = [
        float(relative_error(a, b))
        for _, x in views.batches(device, this_process())
        for a, b in zip(student.adapted(encoder_of(net)(x)), guide(x), strict=True)
    ]
    errors = [error for found in gathered(mine) for error in found]
    return math.fsum(errors) / len(errors)  # exact, so the same in any order
