"""`cameras.toml` -> the cameras of one engine, checked before anything is opened.

[[camera]]
name = "gate"                       # for pages, metrics and {name} in sinks
uri = "rtsp://user:password@10.0.0.7/stream1"
fps = 5                             # masks a second that are wanted; left out: all
priority = 3                        # its share of a full machine against the others
sinks = ["gate.mp4", "gate.jsonl"]  # left out: those of [defaults]

encode = "veryfast"                 # of its videos, as --encode of one source

[defaults]
sinks = ["masks/{name}/"]
"""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from tsss_edge.artifacts import Struct
from tsss_edge.config import read_toml
from tsss_edge.errors import DataError
from tsss_edge.stream.encoders import Preset
from tsss_edge.stream.sinks import require_sinks
from tsss_edge.stream.sources import Policy, require_source
from tsss_edge.stream.uris import parse_sink, require_apart, require_other_place

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class CameraDefaults(Struct, frozen=True):
    """What holds for cameras that do not say otherwise."""

    policy: Policy | None = None
    fps: float | None = None
    priority: int = 1
    sinks: tuple[str, ...] = ("null://",)
    encode: Preset = "auto"


class CameraSpec(Struct, frozen=True):
    """One camera. `fps`: masks a second that are wanted, None for all. `priority`: its share of a full machine, 1 to 100.
    `encode`: what writes its H.264."""

    uri: str
    name: str
    policy: Policy | None = None
    fps: float | None = None
    priority: int = 1
    sinks: tuple[str, ...] = ("null://",)
    encode: Preset = "auto"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r}: expected letters, digits, '.', '_' and '-', 63 at most")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"camera {self.name}: fps {self.fps}; expected more than 0, at most 1000")
        if not 1 <= self.priority <= 100:
            raise ValueError(f"camera {self.name}: priority {self.priority}; expected 1 to 100")
        if not self.sinks:
            raise ValueError(f'camera {self.name}: no sinks; leave the line out, or write sinks = ["null://"]')


class _CameraFile(Struct, frozen=True):
    camera: tuple[dict[str, Any], ...]
    defaults: CameraDefaults = CameraDefaults()


def read_cameras(path: Path) -> tuple[CameraSpec, ...]:
    """Read and check a file of cameras.

    Raises: ArtifactError: not TOML, an unknown key. DataError: a bad value, a source that is not there, a name or a sink that
            stands twice, a sink that only one stream can have. UnavailableError: a source or sink that we lack.
    """
    content = read_toml(path, _CameraFile)
    if not content.camera:
        raise DataError(f"{path}: no [[camera]]; expected at least one")
    cameras = tuple(_camera(path, number, item, content.defaults) for number, item in enumerate(content.camera))
    _require_once(path, [camera.name for camera in cameras])
    sinks = [sink for camera in cameras for sink in camera.sinks]
    require_other_place(sinks, [camera.uri for camera in cameras])
    require_apart(sinks)
    return cameras


def in_shard(cameras: tuple[CameraSpec, ...], shard: str) -> tuple[CameraSpec, ...]:
    """The cameras of `shard`, "K/N": each falls into one of N by its name, and when N changes few of them move.

    Rendezvous hashing (Thaler, Ravishankar 1998). Raises: DataError: not K/N, or no camera falls into it.
    """
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", shard)
    if match is None or not int(match[1]) < int(match[2]):
        raise DataError(f"shard {shard!r}: expected K/N with K from 0 to N - 1, for example 0/4")
    mine, count = int(match[1]), int(match[2])
    own = tuple(camera for camera in cameras if _shard_of(camera.name, count) == mine)
    if not own:
        raise DataError(f"shard {shard}: none of {len(cameras)} cameras falls into it; use fewer shards")
    return own


def _shard_of(name: str, count: int) -> int:
    return max(range(count), key=lambda shard: sha256(f"{shard}:{name}".encode()).digest())


def _camera(path: Path, number: int, item: dict[str, Any], defaults: CameraDefaults) -> CameraSpec:
    values = {**msgspec.structs.asdict(defaults), "name": f"camera-{number}", **item}
    try:
        camera = msgspec.convert(values, CameraSpec)
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: camera number {number + 1}: {error}") from error
    sinks = tuple(sink.replace("{name}", camera.name) for sink in camera.sinks)
    camera = msgspec.structs.replace(camera, sinks=sinks)
    require_source(camera.uri)
    require_sinks(camera.sinks)
    for sink in camera.sinks:
        _require_shareable(path, camera, sink)
    return camera


def _require_shareable(path: Path, camera: CameraSpec, sink: str) -> None:
    parsed = parse_sink(sink)
    if parsed.scheme == "display" or sink == "-":
        raise DataError(f"{path}: camera {camera.name}: {sink} is for one source; use --web, or NAME.jsonl")


def _require_once(path: Path, names: list[str]) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: name {name!r} stands {count} times; each camera has its own")
