"""Pictures per second of the loader alone, of the training step alone, and of both together -> does loading starve it?

python scripts/loader_speed.py --data DIR [--config TOML] [--steps 12] [--json FILE]

`share` is the loader's own time for a batch as a part of the time of a whole step, loading included: what loading costs
where loader and network compete for one core. Elsewhere they overlap, and it costs less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import chain, count, repeat
from pathlib import Path

import cv2
import torch

from tsss_edge.config import TrainConfig, read_toml
from tsss_edge.data.voc import VocDataset
from tsss_edge.train.common import fresh_net
from tsss_edge.train.loader import Batch, Samples
from tsss_edge.train.loop import Average, Moment, Stage, autocast_dtype, make_optimizer, pick_device
from tsss_edge.train.supervised import supervised_stage


def endless(samples: Samples) -> Iterator[Batch]:
    """Batches of epoch after epoch."""
    return chain.from_iterable(samples.batches(epoch) for epoch in count())


def stepper(stage: Stage, config: TrainConfig) -> Callable[[Batch], None]:
    """What the training loop does with a batch, its bookkeeping left out."""
    device = pick_device(config.device)
    net = stage.net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer, average = make_optimizer(net, config), Average(net, config.ema)

    def step(batch: Batch) -> None:
        with torch.autocast(device.type, autocast_dtype(config, device), enabled=config.amp):
            loss, _ = stage.step(batch.to(device), Moment(0, 0.0, average.net))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update(net, 0)
        float(loss.detach())  # waits for a GPU

    return step


def seconds_a_batch(batches: Iterator[Batch], use: Callable[[Batch], None], steps: int) -> float:
    """Mean over `steps` batches, after two that warm up."""
    for _ in range(2):
        use(next(batches))
    start = time.perf_counter()
    for _ in range(steps):
        use(next(batches))
    return (time.perf_counter() - start) / steps


def measure(config: TrainConfig, data: Path, steps: int) -> dict[str, float]:
    """Images per second of each, and the loader's share."""
    dataset = VocDataset.open(data)
    stage = supervised_stage(config, dataset, fresh_net(config, num_classes=len(dataset.classes)))
    samples, step = stage.samples, stepper(stage, config)
    for _ in samples.batches(0):  # decodes every picture once: later epochs find it in memory
        pass
    loader = seconds_a_batch(endless(samples), lambda _: None, 4 * steps)
    network = seconds_a_batch(repeat(next(endless(samples))), step, steps)
    both = seconds_a_batch(endless(samples), step, steps)
    per_second = {name: samples.batch / s for name, s in (("loader", loader), ("step", network), ("both", both))}
    found = {f"{name}_images_per_second": value for name, value in per_second.items()}
    return {**found, "share": loader / both, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="TOML of TrainConfig settings")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = read_toml(options.config, TrainConfig) if options.config else TrainConfig()
    if config.threads:
        torch.set_num_threads(config.threads)
        cv2.setNumThreads(config.threads)
    found = measure(config, options.data, options.steps)
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
