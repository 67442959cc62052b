"""The one training loop: a stage gives it a network, samples, a step and a validation, and gets a run folder back.

All randomness comes from counters (see loader.py). So going on from last.pt gives the weights of an uninterrupted run, bit for
bit, on a CPU, on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tsss_edge import __version__
from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes
from tsss_edge.artifacts import Stage as StageName
from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.files import as_json_reads, write_bytes
from tsss_edge.frozen import freeze_stages, keep_features
from tsss_edge.machine import has_bf16, progress
from tsss_edge.models import pick_device
from tsss_edge.ranks import World, held_for_all, meet
from tsss_edge.train.board import ClassValidation
from tsss_edge.train.distributed import average_gradients, join_training, mean_of_processes, share_batch_statistics
from tsss_edge.train.loader import Batch, Samples
from tsss_edge.train.optimizers import Average, learning_rate, make_optimizer, set_learning_rate
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
    if config.teachers and stage.name != "supervised":
        raise ArtifactError("only a supervised network learns from teachers; leave teachers out of the settings")
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
                set_learning_rate(optimizer, learning_rate(config, moment.step, steps))
                with mixed_precision(device, dtype):
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


@contextmanager
def mixed_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`, nothing for float32; on a CPU without depthwise convolutions."""
    without = FloatDepthwise() if device.type == "cpu" and dtype == torch.bfloat16 else nullcontext()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), without:
        yield


class FloatDepthwise(TorchFunctionMode):
    """Convolutions of each channel by itself stay in float32.

    In bfloat16 their backward pass takes as long on a CPU as bfloat16 saves elsewhere. A step of lite0, 8 views of 256x192, one
    thread, AMD with AVX-512 BF16: 617 ms in float32, 599 in bfloat16, 392 this way.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d or not (args[1].shape[1] == 1 < args[0].shape[1]):
            return func(*args, **kwargs)
        floats: Any = (a.float() if isinstance(a, Tensor) else a for a in args)
        with torch.autocast("cpu", enabled=False):
            return func(*floats, **kwargs)


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """bf16 on CPUs and GPUs that have it, FP16 on older GPUs, float32 without `amp` and on other CPUs (`machine.has_bf16`)."""
    if not config.amp or (device.type == "cpu" and not has_bf16()):
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16
