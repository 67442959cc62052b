"""Processes that `torchrun` started -> one training: each takes its share of every batch, all take the same step.

`DistributedDataParallel` wraps one forward of one module, but a step here may call its network twice or train a discriminator
beside it. So gradients are averaged after `backward`, batch norm sees the whole batch, and losses are means over all pixels: a
batch gives the same step on any number of processes, but for rounding.
"""
# Letters: N batch, C channel, H height, W width.

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tsss_edge.errors import ArtifactError
from tsss_edge.ranks import World, join, processes


def join_training(device: torch.device, batch: int) -> World:
    """`ranks.join`, for a training with this global batch.

    Raises: ArtifactError: the batch does not divide among the processes.
    """
    if batch % (size := processes()):
        raise ArtifactError(f"a batch of {batch} does not divide among {size} processes; choose a multiple of {size}")
    return join(device.type)


def mean_of_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without its gradient; the same tensor in a world of one."""
    if not dist.is_initialized():
        return value.detach()
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean gradient. A parameter that got none in all processes keeps none."""
    if not dist.is_initialized():
        return
    learnt = [p for p in parameters if p.requires_grad]
    has = torch.tensor([float(p.grad is not None) for p in learnt], device=learnt[0].device)
    flat = torch.cat(
        [has, *((p.grad if p.grad is not None else torch.zeros_like(p)).float().flatten() for p in learnt)]
    )
    dist.all_reduce(flat)
    seen, *means = torch.split(flat, [len(learnt), *(p.numel() for p in learnt)])
    for p, count, mean in zip(learnt, seen.tolist(), means, strict=True):
        # in the parameter's memory layout: the fused optimizer pairs them element by element in memory
        p.grad = torch.empty_like(p).copy_(mean.view(p.shape) / dist.get_world_size()) if count else None


def share_batch_statistics(net: nn.Module, device: torch.device) -> None:
    """Let every batch norm of `net` see the batches of all processes. Does nothing in a world of one."""
    if not dist.is_initialized():
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]  # replaces layers inside `net`
        return
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d  # in place: whoever holds the network or the layer sees it


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes: what `nn.SyncBatchNorm`, which refuses CPUs, does on GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) -> the same, in its dtype; statistics in float32."""
        if not self.training:
            return super().forward(x)
        wide = x.float()
        count = x.numel() // x.shape[1] * dist.get_world_size()
        sums = torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])
        mean, square = _SumOverProcesses.apply(sums) / count  # type: ignore[no-untyped-call]
        variance = (square - mean.square()).clamp(min=0)
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        factor = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * factor
        y: Tensor = wide * factor[:, None, None] + shift[:, None, None]
        return y.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose gradient is the sum of all processes' gradients, since each one's loss depends on the sum."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
