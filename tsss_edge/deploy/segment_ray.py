"""`segment` over a Ray cluster: pictures -> masks on any file system, one loaded network a worker process.

Every machine of the cluster needs this package and sees the engine under the same path. Masks that are there already are not made
again, so that a run that was stopped goes on where it was. The masks are those that `segment_files` writes on one machine, byte for
byte.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import load_artifact
from tsss_edge.backends import open_backend
from tsss_edge.deploy.ray_cluster import connect
from tsss_edge.deploy.remote_files import fetch, finished, is_uri, plan_anywhere, put
from tsss_edge.errors import ArtifactError, DataError, UnavailableError
from tsss_edge.segment import SegmentReport, segment_file

LOG = logging.getLogger("tsss_edge")
PICTURES_AT_ONCE = 16  # that a worker gets: enough to hide Ray's own milliseconds, few enough to spread a small folder


def segment_on_ray(
    engine: Path,
    inputs: Sequence[str],
    out: str,
    *,
    address: str,
    overlay: bool = False,
    threads: int | None = None,
    gpus: float = 0.0,
    max_failed: int | None = None,
    again: bool = False,
    trust: bool = False,
) -> SegmentReport:
    """As `segment_files`, spread over a cluster by Ray Data.

    Args:    inputs, out: paths, or addresses of pyarrow's file systems (`s3://bucket/folder`).
             address: "local" (this machine alone), "auto" (a running cluster), HOST:PORT or ray://HOST:PORT.
             threads: CPU threads and cores of one worker; default 1. gpus: of one worker; a part of one is shared.
             max_failed: pictures that may fail before the whole run is given up; default: any number, told at the end.
             again: make masks too that are there already.
    Raises:  UnavailableError: Ray is not installed, or there is no cluster at `address`. DataError: more pictures failed than
             `max_failed`. Others: as `segment_files`.
    """
    jobs = plan_anywhere(inputs, out)
    load_artifact(engine, trust=trust)  # a damaged one is told here in one line, rather than by every worker
    done = set() if again else finished(out, list(jobs.values()))
    rows = [{"picture": picture, "mask": mask} for picture, mask in jobs.items() if mask not in done]
    failed = _spread(rows, engine, address, overlay, threads or 1, gpus, max_failed, trust) if rows else ()
    return SegmentReport(images=len(rows) - len(failed), failed=failed, out=out, finished_before=len(done))


def _spread(
    rows: list[dict[str, str]],
    engine: Path,
    address: str,
    overlay: bool,
    cores: int,
    gpus: float,
    max_failed: int | None,
    trust: bool,
) -> tuple[str, ...]:
    """Every row to a worker -> what failed."""
    ray = connect(address)
    failed: list[str] = []
    try:
        workers = _workers(ray.cluster_resources(), cores, gpus, grows=address != "local")
        told = ray.data.from_items(rows).map_batches(
            Segmenter,
            fn_constructor_args=(str(engine.resolve()), overlay, cores, trust),
            batch_size=PICTURES_AT_ONCE,
            num_cpus=cores,
            num_gpus=gpus or None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        )
        for row in told.iter_rows():
            if row["failed"]:
                failed.append(row["failed"])
            if max_failed is not None and len(failed) > max_failed:
                raise DataError(
                    f"given up: {len(failed)} pictures failed, allowed {max_failed}; the first: {failed[0]}"
                )
    finally:
        ray.shutdown()
    return tuple(sorted(failed))


def _workers(resources: dict[str, float], cores: int, gpus: float, *, grows: bool) -> int:
    """How many the cluster holds now, at least one: where it `grows`, Ray asks for nodes and waits.

    Raises: UnavailableError: not one, and it does not grow, so that Ray would wait for ever.
    """
    by_core = int(resources.get("CPU", 1)) // cores
    found = min(by_core, int(resources.get("GPU", 0) / gpus)) if gpus else by_core
    told = (
        f"a worker wants {cores} cores and {gpus:g} GPUs, the cluster has {resources.get('CPU', 1):g} and "
        f"{resources.get('GPU', 0):g}; give lower --threads and --gpus"
    )
    if not found and not grows:
        raise UnavailableError(told)
    if not found:
        LOG.warning("%s, or wait until it has grown", told)
    return max(1, found)


class Segmenter:
    """One worker's network. Ray makes it once and calls it with batches of addresses."""

    def __init__(self, engine: str, overlay: bool, threads: int, trust: bool) -> None:
        self._backend = open_backend(Path(engine), threads=threads, trust=trust)
        self._overlay = overlay

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """`picture`, `mask` -> `failed`: what went wrong with each picture, "" where nothing did."""
        told = [self._one(str(p), str(m)) for p, m in zip(batch["picture"], batch["mask"], strict=True)]
        return {"failed": np.array(told, dtype=object)}

    def _one(self, picture: str, mask: str) -> str:
        try:
            with tempfile.TemporaryDirectory() as name:
                made = Path(name) / "mask.png" if is_uri(mask) else Path(mask)
                segment_file(self._backend, fetch(picture, Path(name)), made, self._overlay)
                if is_uri(mask):
                    self._upload(made, mask)
        except (DataError, ArtifactError) as error:
            return str(error)
        except OSError as error:
            return f"{picture}: {error}"
        return ""

    def _upload(self, made: Path, mask: str) -> None:
        if self._overlay:  # before the mask, which says that all of it is there
            put(made.with_suffix(".overlay.jpg"), mask.removesuffix(".png") + ".overlay.jpg")
        put(made, mask)
