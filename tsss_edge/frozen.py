"""Encoder stages that keep their weights, and a memory on disk of what they say.

Most of a frozen network's time goes into stages that answer the same picture in the same way every time. With
`TrainConfig.views` the pictures repeat, and each is looked at once: features are found again by the hash of the network
input, in a folder named by the hash of the frozen weights, so nothing stale is ever found, and all stages, seeds and
validations share them. Float16: 138 KB a view at 224x224.
"""
# Letters: N batch, H, W network input.

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tsss_edge.config import TrainConfig, cache_folder
from tsss_edge.errors import ArtifactError
from tsss_edge.files import reason
from tsss_edge.models import SegNet
from tsss_edge.models.lite import LiteEncoder

LOG = logging.getLogger("tsss_edge")
KEY = 16  # bytes of a hash

Halves = NDArray[np.float16]
Look = Callable[[Tensor], list[Tensor]]  # network input -> features of the frozen stages


def freeze_stages(net: nn.Module, stride: int) -> list[nn.Module]:
    """Take the gradients from the encoder stages up to `stride` (0: none) -> those stages, to be kept in eval mode.

    Raises: ArtifactError: an encoder without stages.
    """
    if not stride:
        return []
    encoder = encoder_of(net)
    stages = getattr(encoder, "stages", None)
    if not isinstance(stages, nn.ModuleList):
        raise ArtifactError("freeze: this architecture has no encoder stages to freeze; set freeze = 0")
    last = len(stages) - 5 + stride.bit_length() - 1  # the last stage has stride 32
    parts = [p for p in encoder.children() if p is not stages] + list(stages[:last])
    return [part.eval().requires_grad_(False) for part in parts]


def keep_features(net: nn.Module, config: TrainConfig) -> None:
    """Let the frozen stages of `net` remember, where the settings repeat the views; a lite encoder only.

    Raises: ArtifactError: another architecture.
    """
    if not (config.freeze and config.views):
        return
    encoder = encoder_of(net)
    if not isinstance(encoder, LiteEncoder):
        raise ArtifactError(f"views: {config.arch} keeps no features of frozen stages; set views = 0")
    encoder.memory = None
    encoder.memory = FeatureMemory(encoder, config.freeze)


def encoder_of(net: nn.Module) -> nn.Module:
    """The encoder of a network, or of the network inside. Raises: ArtifactError: there is none."""
    found = next((m for m in net.modules() if isinstance(m, SegNet)), None)
    if found is None:
        raise ArtifactError("this stage has no encoder of ours; set freeze = 0 and encoder_lr = 1")
    return found.encoder


class FeatureMemory:
    """(N,3,H,W) network input -> features of the frozen stages, from stride 8 on; computed once for each input."""

    def __init__(self, encoder: LiteEncoder, stride: int) -> None:
        self._encoder, self._count = encoder, stride.bit_length() - 3  # features: one for 8, two for 16, three for 32
        self._folder = cache_folder("features") / f"{_fingerprint(encoder, self._stages)}-{stride}"
        self._stores: dict[tuple[int, int], FeatureStore] = {}
        self._looks: dict[tuple[int, int], Look] = {}

    @property
    def _stages(self) -> nn.ModuleList:
        stages = self._encoder.stages
        return stages[: len(stages) - 3 + self._count]

    def __deepcopy__(self, memo: dict[int, object]) -> FeatureMemory:
        return self  # the averaged network has the same frozen stages

    @torch.no_grad()
    def __call__(self, x: Tensor) -> list[Tensor]:
        shapes = self._shapes(x)
        store = self._store((x.shape[-2], x.shape[-1]), sum(c * h * w for c, h, w in shapes))
        keys = [hashlib.blake2b(row.tobytes(), digest_size=KEY).digest() for row in _rows(x)]
        new = [n for n, key in enumerate(keys) if key not in store]
        fresh: dict[bytes, Halves] = {}
        if new:
            with torch.autocast(x.device.type, enabled=False):  # what is kept is for all stages, not for a step in bf16
                features = self._look(x)(x[new].float())
            computed = torch.cat([f.flatten(1) for f in features], dim=1).half().cpu().numpy()
            fresh = dict(zip((keys[n] for n in new), computed, strict=True))
            store.add(fresh)
        found = np.stack([fresh[key] if key in fresh else store[key] for key in keys])
        flat = torch.from_numpy(found).to(x.device).float()
        parts = torch.split(flat, [c * h * w for c, h, w in shapes], dim=1)
        views = [p.view(len(x), *shape) for p, shape in zip(parts, shapes, strict=True)]
        return [v.contiguous(memory_format=torch.channels_last) for v in views]

    def _look(self, x: Tensor) -> Look:
        size_hw = (x.shape[-2], x.shape[-1])
        if size_hw not in self._looks:
            self._looks[size_hw] = fast_look(FrozenPart(self._encoder, self._stages, self._count), x)
        return self._looks[size_hw]

    def _shapes(self, x: Tensor) -> list[tuple[int, int, int]]:
        height, width = x.shape[-2:]
        strides = (8, 16, 32)[: self._count]
        return [(c, height // s, width // s) for c, s in zip(self._encoder.channels, strides, strict=False)]

    def _store(self, size_hw: tuple[int, int], length: int) -> FeatureStore:
        if size_hw not in self._stores:
            self._stores[size_hw] = open_store(self._folder / f"{size_hw[0]}x{size_hw[1]}", length)
        return self._stores[size_hw]


class FrozenPart(nn.Module):
    """The frozen stages alone: (N,3,H,W) -> their last `count` features."""

    def __init__(self, encoder: LiteEncoder, stages: nn.ModuleList, count: int) -> None:
        super().__init__()
        self.normalize, self.stages, self._count = encoder.normalize, stages, count

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = self.normalize(x), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[-self._count :]


def fast_look(part: FrozenPart, like: Tensor) -> Look:
    """The function of `part` on batches of any size: by OpenVINO in float32 on a CPU where that is installed, which is 3.3
    times as fast as PyTorch (measured, lite0 at 224x224, one thread); else by PyTorch."""
    if like.device.type != "cpu" or find_spec("openvino") is None or find_spec("onnx") is None:
        return part
    from tsss_edge.backends.base import openvino_core
    from tsss_edge.export.emit import emit_floats

    core = openvino_core()
    model = core.read_model(emit_floats(part, like.shape[1:]).SerializeToString())
    exact = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", exact).create_infer_request()

    def look(x: Tensor) -> list[Tensor]:
        found = request.infer([x.contiguous().numpy()])
        return [torch.from_numpy(found[i].copy()) for i in range(len(found))]

    return look


def _fingerprint(encoder: LiteEncoder, stages: nn.ModuleList) -> str:
    digest = hashlib.sha256(f"{encoder.normalize.gain} {encoder.normalize.offset}".encode())
    for name, value in sorted(stages.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _rows(x: Tensor) -> NDArray[np.float32]:
    return x.detach().permute(0, 2, 3, 1).contiguous().cpu().numpy()


@cache
def open_store(folder: Path, length: int) -> FeatureStore:
    """The one of this process: several networks with the same frozen stages share it."""
    return FeatureStore(folder, length)


class FeatureStore:
    """Arrays of `length` float16 by key, appended to two files; what a killed process left half-written is cut off.

    One process writes at a time; another one that finds it locked reads what is there and keeps nothing.
    """

    def __init__(self, folder: Path, length: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._length, self._lock = length, threading.Lock()
        self._keys, self._data = _open(folder / "keys"), _open(folder / "features")
        for file in (self._keys, self._data):
            weakref.finalize(self, file.close)
        self._writes = _locked(self._keys)
        names = self._keys.read()
        count = min(len(names) // KEY, (folder / "features").stat().st_size // (2 * length))
        if self._writes:
            self._keys.truncate(count * KEY)
            self._data.truncate(count * 2 * length)
        self._places = {names[i * KEY : (i + 1) * KEY]: i for i in range(count)}

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __getitem__(self, key: bytes) -> Halves:
        with self._lock:
            self._data.seek(self._places[key] * 2 * self._length)
            return np.frombuffer(self._data.read(2 * self._length), np.float16)

    def add(self, arrays: dict[bytes, Halves]) -> None:
        """Keep them, if this process is the one that writes. A full disk ends the keeping and nothing else: it only saves time."""
        if not self._writes:
            return
        with self._lock:
            try:
                for key, array in arrays.items():
                    if key not in self._places:
                        _append(self._data, array.astype(np.float16).tobytes())
                        _append(self._keys, key)  # last: it says that the array is whole
                        self._places[key] = len(self._places)
            except OSError as error:
                self._writes = False
                LOG.warning("features of frozen stages are kept no longer (%s); the training goes on", reason(error))


def _open(path: Path) -> FileIO:
    path.touch()
    return path.open("r+b", buffering=0)  # what could not be written must not come back from a buffer later


def _append(file: FileIO, data: bytes) -> None:
    file.seek(0, 2)
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _locked(file: FileIO) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: there one process is trusted to be alone
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
