"""A checkpoint on the GPU and on the CPU -> do they agree, and how fast is the GPU? `python -m acceptance.pytorch`.

The back end that runs on every CUDA host with PyTorch, TensorRT or not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tsss_edge.backends import open_backend
from tsss_edge.bench import time_networks
from tsss_edge.errors import GateError
from tsss_edge.files import write_json

PICTURES = 8
AGREEMENT = (
    0.99  # of labels on noise, where classes lie close together: TF32 convolutions differ in the third digit (ours)
)


def compare_devices(checkpoint: Path, device: str = "cuda:0", *, duration_s: float = 2.0) -> dict[str, Any]:
    """Share of equal labels (0-1), milliseconds a picture and pictures a second on `device`.

    Raises: GateError: fewer than `AGREEMENT` of the labels agree. Others: as `open_backend`.
    """
    with open_backend(checkpoint, device=device) as fast, open_backend(checkpoint, device="cpu") as slow:
        batches = np.random.default_rng(0).integers(0, 256, (PICTURES, 1, *fast.preprocess.size_hw, 3), np.uint8)
        equal = [(fast.infer(x)["logits"].argmax(1) == slow.infer(x)["logits"].argmax(1)).mean() for x in batches]
        (timed,) = time_networks([fast], [checkpoint.name], duration_s=duration_s)
    agreement = float(np.mean(equal))
    if agreement < AGREEMENT:
        raise GateError(
            f"PyTorch on {device} agrees with the CPU on {agreement:.4f} of the labels, {AGREEMENT} expected"
        )
    return {"pixel_agreement": agreement, "latency_ms": timed.latency_ms.p50, "throughput_fps": timed.throughput_fps}


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), compare_devices(Path(sys.argv[1])))
