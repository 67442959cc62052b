"""`segment` over a Ray cluster: pictures -> masks, one loaded network a worker process.

Every machine of the cluster needs this package and sees pictures, engine and output folder under the same paths (a shared
file system). The masks are those that `segment_files` writes on one machine, byte for byte.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Engine
from tsss_edge.backends import open_backend
from tsss_edge.backends.common import import_extra
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.segment import SegmentReport, plan, segment_file

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
        rows = [{"picture": str(p.resolve()), "mask": str(mask)} for p, mask in jobs.items()]
        told = ray.data.from_items(rows).map_batches(
            Segmenter,
            fn_constructor_args=(str(engine.resolve()), overlay, cores, trust),
            batch_size=16,
            num_cpus=cores,
            concurrency=(1, max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)),
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
    options = {"include_dashboard": False} if address == "local" else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or ["no answer"])[0]
        raise UnavailableError(f"no Ray cluster at {address!r} ({first}); {ADDRESS_HELP}") from error
    return ray
