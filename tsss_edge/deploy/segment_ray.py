"""`segment` over a Ray cluster: pictures -> masks, one loaded network a worker process.

Every machine of the cluster needs this package and sees pictures, engine and output folder under the same paths (a shared
file system). The masks are those that `segment_files` writes on one machine, byte for byte.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Engine
from tsss_edge.backends import open_backend
from tsss_edge.backends.base import import_extra
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.segment import SegmentReport, plan, segment_file

PICTURES_AT_ONCE = 16  # that a worker gets: enough to hide Ray's own milliseconds, few enough to spread a small folder
CONNECT_S = 5.0
ADDRESS_HELP = (
    "start one with `ray start --head`, give its HOST:PORT, `auto` for a running one, `local` for this machine"
)


def segment_on_ray(
    engine: Path,
    inputs: Sequence[str],
    out: Path,
    *,
    address: str,
    overlay: bool = False,
    threads: int | None = None,
    trust: bool = False,
) -> SegmentReport:
    """As `segment_files`, spread over a cluster by Ray Data.

    Args:    address: "local" (this machine alone), "auto" (a running cluster), HOST:PORT or ray://HOST:PORT.
             threads: CPU threads and cores of one worker; default 1.
    Raises:  UnavailableError: Ray is not installed, or there is no cluster at `address`. Others: as `segment_files`.
    """
    jobs = plan(inputs, out.resolve())
    if engine.suffix in (".xml", ".engine"):
        Engine.load(engine, trust=trust)  # told here in one line, rather than by every worker
    ray = _connect(address)
    cores = threads or 1
    try:
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)
        rows = [{"picture": str(p.resolve()), "mask": str(mask)} for p, mask in jobs.items()]
        told = ray.data.from_items(rows).map_batches(
            Segmenter,
            fn_constructor_args=(str(engine.resolve()), overlay, cores, trust),
            batch_size=PICTURES_AT_ONCE,
            num_cpus=cores,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        )
        failed = tuple(sorted(row["failed"] for row in told.take_all() if row["failed"]))
    finally:
        ray.shutdown()
    return SegmentReport(images=len(jobs) - len(failed), failed=failed, out=str(out))


class Segmenter:
    """One worker's network. Ray makes it once and calls it with batches of paths."""

    def __init__(self, engine: str, overlay: bool, threads: int, trust: bool) -> None:
        self._backend = open_backend(Path(engine), threads=threads, trust=trust)
        self._overlay = overlay

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """`picture`, `mask`: paths -> `failed`: what went wrong with each picture, "" where nothing did."""
        told = [self._one(Path(p), Path(m)) for p, m in zip(batch["picture"], batch["mask"], strict=True)]
        return {"failed": np.array(told, dtype=object)}

    def _one(self, picture: Path, mask: Path) -> str:
        try:
            segment_file(self._backend, picture, mask, self._overlay)
        except DataError as error:
            return str(error)
        return ""


def _connect(address: str) -> Any:
    ray = import_extra("ray", "scale")
    import_extra("ray.data", "scale")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _require_listener(address)
    options = {"include_dashboard": False} if address == "local" else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or ["no answer"])[0]
        raise UnavailableError(f"no Ray cluster at {address!r} ({first}); {ADDRESS_HELP}") from error
    return ray


def _require_listener(address: str) -> None:
    """Ray itself tries for minutes when nobody listens at HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UnavailableError(f"no Ray cluster at {address!r} ({error}); {ADDRESS_HELP}") from error
