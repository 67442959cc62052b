"""The one training loop: a stage gives it a network, samples, a step and a validation, and gets a run folder back.

All randomness comes from counters (see loader.py). So going on from last.pt gives the weights of an uninterrupted run, bit for
bit, on a CPU, on the same machine with the same number of threads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsss_edge import __version__
from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes
from tsss_edge.artifacts import Stage as StageName
from tsss_edge.config import TrainConfig
from tsss_edge.errors import DataError
from tsss_edge.files import as_json_reads, write_bytes
from tsss_edge.frozen import freeze_stages, keep_features
from tsss_edge.machine import has_bf16, progress
from tsss_edge.models import pick_device
from tsss_edge.ranks import World, held_for_all, meet
from tsss_edge.train.board import ClassValidation
from tsss_edge.train.distributed import average_gradients, join_training, mean_of_processes, share_batch_statistics
from tsss_edge.train.loader import Batch, Samples
from tsss_edge.train.runfolder import Checkpoints, Log, Stateful, has_begun, to_toml

CLIP_NORM = 5.0  # of the whole gradient; keeps one odd batch from undoing an epoch


@dataclass(frozen=True)
class Moment:
    """Where training is: optimizer steps done, their share of the whole (0-1), and the averaged network so far."""

    step: int
    done: float
    average: nn.Module | None = None


Step = Callable[[Batch, Moment], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Stage:
    """What makes a stage.

    step: batch -> (loss to minimise, its parts for the log); runs `net` in training mode.
    validate: network -> metrics, by all processes together; `key` is the one to maximise for best.pt, "" keeps the newest
    weights.
    shows: what TensorBoard gets after a validation, beside its metrics.
    beside: what else must survive a resume.
    """

    name: StageName
    net: nn.Module
    samples: Samples
    step: Step
    validate: Callable[[nn.Module], dict[str, float]]
    key: str = ""
    shows: ClassValidation | None = None
    strong: tuple[str, ...] = ()
    beside: dict[str, Stateful] = field(default_factory=dict)
    options: dict[str, float] = field(default_factory=dict)  # switches of the stage that a resumed run must share
    classes: Classes | None = None  # of the checkpoint, where they are not the data set's
    parent: str = ""  # SHA-256 of the checkpoint that this one is adapted from


def train(stage: Stage, config: TrainConfig, out: Path, *, resume: bool = False) -> Checkpoint:
    """Train a stage into the run folder `out` and return its best checkpoint.

    Raises: DataError: a picture or mask is damaged, or the loss became NaN (the batch's ids are named).
            ArtifactError: `out` holds another run, or was started with other settings. BusyError: another process trains there.
    """
    device = pick_device(config.device)
    world = join_training(device, stage.samples.batch)
    with held_for_all(out, f"{out}: this run folder"):
        return _trained(stage, config, out, world, device, resume=resume)


def _trained(
    stage: Stage, config: TrainConfig, out: Path, world: World, device: torch.device, *, resume: bool
) -> Checkpoint:
    if config.threads and device.type == "cpu":
        torch.set_num_threads(config.threads)  # of the whole process; 0 leaves PyTorch's own choice, all cores
    net = stage.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in stage.beside.values():
        if isinstance(part, nn.Module):
            part.to(device)  # before its optimizer's state is restored, which goes where the parameters are
    frozen = freeze_stages(net, config.freeze)
    keep_features(net, config)
    optimizer = make_optimizer(net, config)
    average = Average(net, config.ema)
    share_batch_statistics(net, device)
    dtype = autocast_dtype(config, device)
    scaler = torch.amp.GradScaler(enabled=dtype == torch.float16)
    beside: dict[str, Stateful] = {"optimizer": optimizer, "scaler": scaler, **stage.beside}
    checkpoints = Checkpoints(out, describe(stage, config), net, average.net, beside, stage.options)
    first = checkpoints.restore() if has_begun(out, resume) else 0
    if world.writes:
        write_bytes(out / "config.toml", to_toml(config).encode())
    steps = stage.samples.steps
    total = steps * config.epochs

    with (
        Log(out, first, writes=world.writes) as log,
        progress(f"{stage.name} {config.arch}", total, first * steps, shown=world.writes) as tick,
    ):
        for epoch in range(first, config.epochs):
            net.train()
            for part in frozen:
                part.eval()  # its statistics stay
            torch.manual_seed(epoch_seed(config.seed, epoch, world.rank))
            for index, batch in enumerate(stage.samples.batches(epoch, rank=world.rank, world=world.size)):
                moment = Moment(epoch * steps + index, (epoch * steps + index) / total, average.net)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, moment, steps)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss, parts = stage.step(batch.to(device), moment)
                require_finite(loss, batch, moment)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                average_gradients(net.parameters())
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
                scaler.step(optimizer)
                scaler.update()
                average.update(net, moment.step)
                log.step(mean_of_processes(loss), parts)
                tick()
            due = (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs
            metrics = stage.validate(average.net) if due else {}
            if world.writes:
                log.epoch(epoch, optimizer.param_groups[0]["lr"], metrics)
                if due and stage.shows is not None:
                    log.show(epoch, stage.shows, average.net)
                best = metrics.get(stage.key, -math.inf) if stage.key else epoch  # without a key the newest is best
                checkpoints.save(epoch + 1, metrics, best)
    meet()  # until process 0 has written
    return Checkpoint.load(out / "best.pt")


def require_finite(loss: Tensor, batch: Batch, moment: Moment) -> None:
    """Raise DataError, naming the pictures, when the loss is NaN or infinite."""
    if not bool(torch.isfinite(loss)):
        raise DataError(
            f"the loss became {loss.item()} at step {moment.step}, in the batch of {', '.join(batch.ids)}; "
            "look at these pictures, or lower the learning rate"
        )


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of PyTorch's generator (dropout) for an epoch: other numbers in every epoch and process."""
    return ((seed * 1_000_003 + epoch) * 1_009 + rank) % 2**63


def describe(stage: Stage, config: TrainConfig) -> CheckpointMeta:
    """What the stage's checkpoints say of themselves."""
    return CheckpointMeta(
        stage=stage.name,
        arch=config.arch,
        classes=stage.classes or stage.samples.dataset.classes,
        preprocess=config.preprocess,
        strong=stage.strong,
        training=as_json_reads(config),
        data_hash=stage.samples.fingerprint(),
        parent=stage.parent,
        tool=f"tsss-edge {__version__}",
    )


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """bf16 on CPUs and GPUs that have it, FP16 on older GPUs, float32 without `amp` and on other CPUs (`machine.has_bf16`).

    Float32 also for depthwise convolutions on any CPU: PyTorch's bf16 ones were ten times as slow (lite0).
    """
    if not config.amp or (device.type == "cpu" and (config.arch.startswith("lite") or not has_bf16())):
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


# -- Optimizer and schedule


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or Muon; no weight decay on biases and batch norms (arXiv 1812.01187, section 3.1)."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    if config.optimizer == "muon":
        return Muon(parameters, lr=config.lr, weight_decay=config.weight_decay)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)


def learning_rate(config: TrainConfig, moment: Moment, steps_per_epoch: int) -> float:
    """Linear warm-up, then a half cosine to zero (arXiv 1608.03983 without restarts)."""
    warmup_steps = config.warmup_epochs * steps_per_epoch
    warmup = min(1.0, (moment.step + 1) / warmup_steps) if warmup_steps else 1.0
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * moment.done))


class Average:
    """Exponential moving average of a network's weights and statistics; what is evaluated and saved as best.pt."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards `net`; faster at first (`(1+t)/(10+t)`, as in TensorFlow's moving averages)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        ours, theirs = self.net.state_dict(), net.state_dict()
        floating = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in floating], [theirs[n] for n in floating], 1 - decay)
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])


# -- Muon

MATRIX_LR = 6.0  # times the learning rate of the others, which is AdamW's (ours, measured on CamVid)
MOMENTUM = 0.9
BETAS, EPS = (0.9, 0.99), 1e-8
ITERATIONS = 4  # of Newton-Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of its polynomial, from the source above


class Muon(torch.optim.Optimizer):
    """Orthogonal steps: convolutions move along the orthogonal matrix nearest to their momentum.

    K. Jordan and others, 2024, https://kellerjordan.github.io/posts/muon/. Every direction of a weight matrix moves equally
    far, so rare ones are learnt in fewer steps than AdamW needs. Parameters of two or more dimensions are matrices (rows:
    output channels); biases and batch norms take Adam's steps, without decay.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        parameters = list(parameters)
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups = [
            {"params": matrices, "lr_factor": MATRIX_LR, "weight_decay": weight_decay},
            {"params": others, "lr_factor": 1.0, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            lr = group["lr"] * group["lr_factor"]
            for p in group["params"]:
                if p.grad is not None:
                    step = self._orthogonal(p, p.grad) if p.ndim > 1 else self._adam(p, p.grad)
                    p.mul_(1 - lr * group["weight_decay"]).add_(step, alpha=-lr)

    def _orthogonal(self, p: Tensor, gradient: Tensor) -> Tensor:
        momentum: Tensor = self.state[p].setdefault("momentum", torch.zeros_like(p))
        momentum.mul_(MOMENTUM).add_(gradient)
        rows = (gradient + MOMENTUM * momentum).flatten(1)  # Nesterov
        return orthogonalize(rows).mul_(max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5).view(p.shape)

    def _adam(self, p: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state.update(steps=torch.zeros(()), mean=torch.zeros_like(p), square=torch.zeros_like(p))
        steps, mean, square = state["steps"], state["mean"], state["square"]
        steps += 1
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        step: Tensor = mean / (1 - BETAS[0] ** steps) / ((square / (1 - BETAS[1] ** steps)).sqrt() + EPS)
        return step


def orthogonalize(matrix: Tensor) -> Tensor:
    """(R,C) -> about U V^T of its singular value decomposition, float32; singular values end within 0.7-1.2.

    Newton-Schulz iteration, much cheaper than the decomposition; in bfloat16, which it tolerates, where that is quick.
    """
    a, b, c = COEFFICIENTS
    quick = torch.bfloat16 if matrix.is_cuda or _cpu_has_bf16() else torch.float32
    x: Tensor = (matrix / (matrix.norm() + 1e-7)).to(quick)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x  # the smaller Gram matrix
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal.float()


@cache
def _cpu_has_bf16() -> bool:
    """`has_bf16`, asked once: each matrix of each step wants to know. Without it an edge-m step took 16 times as long (AVX2)."""
    return has_bf16()
