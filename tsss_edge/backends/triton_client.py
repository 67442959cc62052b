"""An engine on another host: `triton://HOST[:PORT]/MODEL[/VERSION]` -> an `AsyncBackend` over KServe v2 (gRPC).

Pictures and answers go through shared memory where the server is on this host, and over the wire elsewhere. A server that goes
away is waited for, as a camera is: requests are sent again until it is back, and `state` says so meanwhile.
Protocol: github.com/kserve/open-inference-protocol; shared memory: Triton's docs/protocol/extension_shared_memory.md.
"""
# Letters: N batch, H height, W width.

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Preprocess, Struct, TensorSpec
from tsss_edge.backends.base import SERVED, Closing, Outputs, import_extra, require_images
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import parse_json

LOG = logging.getLogger("tsss_edge")
T = TypeVar("T")
PORT = 8001  # Triton's own for gRPC
DESCRIPTION = "tsss_edge"  # the parameter of `config.pbtxt` that holds a `ServedDescription`
LOCAL = ("127.0.0.1", "localhost", "::1")
CONNECT_S, REQUEST_S = 5.0, 30.0
FIRST_S, LONGEST_S = 0.5, 8.0  # between attempts to reach a lost server, as with a camera
READY, RECONNECTING = "READY", "RECONNECTING"
PATIENCE_S = 600.0  # after that it counts as lost for good
_DTYPES = {"TYPE_UINT8": "uint8", "TYPE_FP32": "float32", "TYPE_FP16": "float16", "TYPE_INT32": "int32"}
# gRPC's own choice is one server of a name for good, and 4 MiB a message.
CHANNEL = (
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
_regions = count()


class ServedDescription(Struct, frozen=True):
    """What a client must know of a served network beside its tensors."""

    classes: Classes
    preprocess: Preprocess


class ServedAddress(Struct, frozen=True):
    """`triton://HOST:PORT/MODEL/VERSION?shm=0`, taken apart. `version` "": the newest."""

    host: str
    port: int
    model: str
    version: str = ""
    shared_memory: bool = True

    @property
    def shown(self) -> str:
        """For messages."""
        return f"triton://{self.host}:{self.port}/{self.model}" + (f"/{self.version}" if self.version else "")


def served_address(path: Path | str) -> ServedAddress | None:
    """The address that a path holds, or None. A `Path` has made one slash of two. Raises: ArtifactError: it is not one."""
    text = str(path)
    if not text.startswith(SERVED):
        return None
    parts = urlsplit("triton://" + text.removeprefix(SERVED).lstrip("/"))
    model, _, version = parts.path.strip("/").partition("/")
    query = dict(parse_qsl(parts.query))
    try:
        port = parts.port or PORT
    except ValueError:
        port = 0
    if not parts.hostname or not model or not port or (version and not version.isdecimal()) or set(query) - {"shm"}:
        raise ArtifactError(f"{text}: expected triton://HOST[:PORT]/MODEL[/VERSION][?shm=0]")
    shared = query.get("shm", "1") != "0" and parts.hostname in LOCAL
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname  # of IPv6
    return ServedAddress(host, port, model, version, shared)


def require_address(path: Path | str) -> ServedAddress:
    """As `served_address`, of a path that is one. Raises: ArtifactError: it is not."""
    address = served_address(path)
    if address is None:
        raise ArtifactError(f"{path}: expected triton://HOST[:PORT]/MODEL[/VERSION][?shm=0]")
    return address


class TritonBackend(Closing):
    """A served network. Its requests are independent; a client has `slots` of them on the way."""

    min_batch = 1

    def __init__(self, address: ServedAddress, *, slots: int = 1, patience_s: float = PATIENCE_S) -> None:
        """Connect and read what is served.

        Raises: UnavailableError: tritonclient is not installed, or nobody answers. ArtifactError: no such model, or not ours.
        """
        self._grpc = import_extra("tritonclient.grpc", "serve")
        self._address, self._patience_s = address, patience_s
        self._lost = 0  # requests that wait for the server now
        self._lock = threading.Lock()
        self._closed = threading.Event()
        config = self._first_config()
        description = _description(config, address)
        self.classes, self.preprocess = description.classes, description.preprocess
        self.batched = config.max_batch_size > 0
        self.outputs = tuple(_spec(tensor, batched=self.batched) for tensor in config.output)
        self.slots = slots
        self.name = f"{address.shown} ({'shared memory' if address.shared_memory else 'gRPC'})"
        self._slots = [_Slot(self._grpc, address, self.outputs) for _ in range(slots)]
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="triton")
        self._running: list[Future[None] | None] = [None] * slots

    @property
    def state(self) -> str:
        """READY, or RECONNECTING while requests wait for a server that does not answer."""
        return RECONNECTING if self._lost else READY

    def start(self, slot: int, images: NDArray[np.uint8]) -> None:
        """Send (N,H,W,3) uint8 RGB and return. `images` is read until `wait`: leave it alone."""
        require_images(images, self.preprocess.size_hw)
        if not self.batched and len(images) != 1:
            raise ValueError(f"{self._address.shown} takes one picture at a time, got {len(images)}")
        self._running[slot] = self._threads.submit(self._persist, self._slots[slot], images)

    def wait(self, slot: int) -> Outputs:
        """Outputs of `slot`, valid until its next `start`. Raises: UnavailableError: the server did not come back."""
        running = self._running[slot]
        assert running is not None, f"slot {slot} waited for without start"
        running.result()
        return self._slots[slot].arrays

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """(N,H,W,3) uint8 RGB -> arrays by output name, overwritten by the next call."""
        self.start(0, images)
        return self.wait(0)

    def give_up(self) -> None:
        """Wait no longer for a server that is lost: requests on the way to it fail. Those that are answered are not touched."""
        self._closed.set()

    def close(self) -> None:
        """Give up what is on the way, and disconnect. Safe to call twice."""
        self.give_up()
        self._threads.shutdown()
        for slot in self._slots:
            slot.close()

    def _first_config(self) -> Any:
        client = _connect(self._grpc, self._address)
        try:
            found = client.get_model_config(self._address.model, self._address.version, client_timeout=CONNECT_S)
        except self._grpc.InferenceServerException as error:
            if "UNAVAILABLE" in str(error.status()) or "DEADLINE" in str(error.status()):
                raise UnavailableError(
                    f"{self._address.shown}: nobody answers there; start Triton, or check host and port"
                ) from error
            raise ArtifactError(f"{self._address.shown}: {error.message()}") from error
        finally:
            client.close()
        return found.config

    def _persist(self, slot: _Slot, images: NDArray[np.uint8]) -> None:
        """Send a request until it is answered. An error that the model itself gives is raised at once."""
        try:
            return slot.run(images)
        except self._grpc.InferenceServerException as error:
            if not _will_pass(error):
                raise ArtifactError(f"{self._address.shown}: {error.message()}") from error
        self._count_lost(1)
        try:
            self._again(lambda: slot.run(images))
        finally:
            self._count_lost(-1)

    def _again(self, run: Callable[[], None]) -> None:
        delay, deadline = FIRST_S, time.monotonic() + self._patience_s
        while True:
            if self._closed.wait(delay) or time.monotonic() > deadline:
                raise UnavailableError(f"{self._address.shown}: the server went away and did not come back")
            try:
                return run()
            except self._grpc.InferenceServerException as error:
                if not _will_pass(error):
                    raise ArtifactError(f"{self._address.shown}: {error.message()}") from error
            delay = min(2 * delay, LONGEST_S)

    def _count_lost(self, change: int) -> None:
        with self._lock:
            before, self._lost = self._lost, self._lost + change
        if not before or not self._lost:
            LOG.warning("%s: %s", self._address.shown, "connection lost, trying again" if self._lost else "back")


def state_of(backend: object) -> str:
    """READY, or RECONNECTING of an engine elsewhere; one in this process is always ready."""
    return str(getattr(backend, "state", READY))


def give_up(backend: object) -> None:
    """The stream ends: do not wait for an engine elsewhere that is lost. One in this process is never lost."""
    getattr(backend, "give_up", lambda: None)()


LOST = (
    "UNAVAILABLE",
    "DEADLINE",
    "CANCELLED",
    "Unable to find shared memory region",
)  # a restarted server knows no region of ours
UNLOADED = (
    "is not ready",
    "not found",
    "no available versions",
)  # by a server that stops, or not loaded yet by one that is back


def _will_pass(error: Any) -> bool:
    """Whether trying again may help: nobody answered, or the server does not have the model at the moment."""
    text = f"{error.status()} {error.message()}"
    return any(word in text for word in LOST) or any(word in error.message() for word in UNLOADED)


def _description(config: Any, address: ServedAddress) -> ServedDescription:
    text = config.parameters[DESCRIPTION].string_value if DESCRIPTION in config.parameters else ""
    try:
        return parse_json(text, ServedDescription)
    except msgspec.DecodeError as error:
        raise ArtifactError(
            f"{address.shown}: its config.pbtxt does not say what its classes are; write the repository with `tsss-edge triton`"
        ) from error


def _spec(tensor: Any, *, batched: bool) -> TensorSpec:
    kind = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
    shape = (-1, *tensor.dims) if batched else tuple(tensor.dims)
    return TensorSpec(name=tensor.name, dtype=_DTYPES[kind], shape=tuple(int(d) for d in shape))


def _connect(grpc: Any, address: ServedAddress) -> Any:
    """A client. Where a name has several servers they take turns; with shared memory one keeps all, for only it knows the region."""
    channel = None if address.shared_memory else list(CHANNEL)
    return grpc.InferenceServerClient(f"{address.host}:{address.port}", channel_args=channel)


class _Slot:
    """One request: its own connection (a client is for one thread) and, on one host, its own shared memory."""

    def __init__(self, grpc: Any, address: ServedAddress, outputs: tuple[TensorSpec, ...]) -> None:
        self._grpc, self._address, self._specs = grpc, address, outputs
        self._client = _connect(grpc, address)
        self._region: _Region | None = None
        self.arrays: dict[str, NDArray[Any]] = {}

    def run(self, images: NDArray[np.uint8]) -> None:
        """Send pictures; the answer is in `arrays` afterwards."""
        if self._address.shared_memory:
            self._run_shared(images)
            return
        given = self._grpc.InferInput("image", list(images.shape), "UINT8")
        given.set_data_from_numpy(images)
        found = self._infer(given, [self._grpc.InferRequestedOutput(spec.name) for spec in self._specs])
        self.arrays = {spec.name: found.as_numpy(spec.name) for spec in self._specs}

    def _run_shared(self, images: NDArray[np.uint8]) -> None:
        if self._region is None or self._region.shape != images.shape:
            self._drop_region()
            self._region = _Region(self._grpc, images.shape, self._specs)
            self.arrays = self._region.outputs
        self._region.register(self._client)
        np.copyto(self._region.images, images)
        try:
            self._infer(self._region.given, self._region.wanted)
        except self._grpc.InferenceServerException:
            self._region.registered = False  # perhaps another server answers next time
            raise

    def _infer(self, given: Any, wanted: list[Any]) -> Any:
        a = self._address
        return self._client.infer(a.model, [given], model_version=a.version, outputs=wanted, client_timeout=REQUEST_S)

    def _drop_region(self) -> None:
        if self._region is not None:
            self._region.close(self._client)
            self._region = None

    def close(self) -> None:
        self._drop_region()
        self._client.close()


class _Region:
    """Shared memory for the pictures and the answers of one request, as NumPy arrays on it."""

    def __init__(self, grpc: Any, shape: tuple[int, ...], specs: tuple[TensorSpec, ...]) -> None:
        self._shm = import_extra("tritonclient.utils.shared_memory", "serve")
        self._grpc = grpc
        self.shape, self.registered = shape, False
        self._name = f"tsss_edge_{os.getpid()}_{secrets.token_hex(4)}_{next(_regions)}"  # containers may share memory, and numbers
        shapes = {spec.name: (shape[0], *spec.shape[1:]) for spec in specs}
        sizes = {s.name: int(np.prod(shapes[s.name])) * np.dtype(s.dtype).itemsize for s in specs}
        first = -(-int(np.prod(shape)) // 64) * 64  # answers begin where any type may
        self._bytes = first + sum(-(-size // 64) * 64 for size in sizes.values())
        self._handle = self._shm.create_shared_memory_region(self._name, f"/{self._name}", self._bytes)
        self.images = self._view(np.uint8, shape, 0)
        self.given = grpc.InferInput("image", list(shape), "UINT8")
        self.given.set_shared_memory(self._name, int(np.prod(shape)))
        self.outputs: dict[str, NDArray[Any]] = {}
        self.wanted = []
        for spec in specs:
            self.outputs[spec.name] = self._view(spec.dtype, shapes[spec.name], first)
            wanted = grpc.InferRequestedOutput(spec.name)
            wanted.set_shared_memory(self._name, sizes[spec.name], first)
            self.wanted.append(wanted)
            first += -(-sizes[spec.name] // 64) * 64

    def _view(self, dtype: Any, shape: tuple[int, ...], offset: int) -> NDArray[Any]:
        view: NDArray[Any] = self._shm.get_contents_as_numpy(self._handle, np.dtype(dtype), list(shape), offset)
        return view

    def register(self, client: Any) -> None:
        """Tell the server, once a connection; one that only did not answer in time still knows it."""
        if self.registered:
            return
        try:
            client.register_system_shared_memory(self._name, f"/{self._name}", self._bytes, client_timeout=CONNECT_S)
        except self._grpc.InferenceServerException as error:
            if "already in manager" not in error.message():
                raise
        self.registered = True

    def close(self, client: Any) -> None:
        try:
            if self.registered:
                client.unregister_system_shared_memory(self._name, client_timeout=CONNECT_S)
        except self._grpc.InferenceServerException as error:
            LOG.debug("shared memory of a server that is gone: %s", error)
        self._shm.destroy_shared_memory_region(self._handle)
