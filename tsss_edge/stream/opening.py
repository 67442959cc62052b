"""An engine file -> what the loop runs: checked, with the requests in flight and the stages that fit machine and source."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from tsss_edge.artifacts import Checkpoint, Engine, FieldProfile
from tsss_edge.backends import AsyncBackend, open_backend
from tsss_edge.backends.batching import BatchingBackend
from tsss_edge.backends.ov import MAX_STREAMS
from tsss_edge.backends.triton_client import TritonBackend, served_address
from tsss_edge.errors import ArtifactError, DataError, GateError, UnavailableError
from tsss_edge.field.collector import Collector, CollectPlan
from tsss_edge.machine import usable_cores
from tsss_edge.signing import require_signed
from tsss_edge.stream.cpu_stages import CpuStages
from tsss_edge.stream.cuda_slot import DeviceEngine
from tsss_edge.stream.cuda_stages import IN_FLIGHT, open_cuda_stages
from tsss_edge.stream.engine_slot import Served
from tsss_edge.stream.field_watch import FieldWatch
from tsss_edge.stream.pipeline import Stages, ready_results, slots_needed
from tsss_edge.stream.reuse import Reuse, ReuseStages
from tsss_edge.stream.smooth import SmoothStages

SERVED_SLOTS = 8  # requests on the way to a server: enough to fill its batches while others travel
BATCHES = 2  # in flight: one runs while the next fills

LOG = logging.getLogger("tsss_edge")


def is_checkpoint(path: Path) -> bool:
    """Whether PyTorch runs it: a run folder or a `.pt`."""
    return path.is_dir() or path.suffix == ".pt"


def has_record(path: Path) -> bool:
    """Whether a record belongs beside it; none to a checkpoint, which is the reference, nor here to an engine on a server."""
    return not is_checkpoint(path) and served_address(path) is None


def require_gate(path: Path, *, force: bool, trusted_key: Path | None = None) -> None:
    """Raise GateError if the engine's accuracy gate failed, ArtifactError if it is no engine with a record that `trusted_key` signed.

    A checkpoint has no gate: it is the reference.
    """
    if not has_record(path):  # a served engine is gated where its repository is written
        if trusted_key is not None:
            raise ArtifactError(f"{path}: nobody signs a checkpoint or a server; --trusted-key takes engines")
        return
    if path.suffix not in (".xml", ".engine"):
        raise ArtifactError(
            f"{path}: expected an engine (.xml, .engine, triton://HOST/MODEL), or on a GPU a checkpoint; make one with "
            "`tsss-edge build-engine`"
        )
    engine = Engine.load(path, trust=True)  # the back end checks the hashes
    if trusted_key is not None:
        require_signed(engine, trusted_key)
    parity = engine.record.parity
    if parity is None:
        LOG.warning(
            "%s is UNPROVEN: nobody has compared it with the network it came from. Prove it with `tsss-edge parity %s "
            "--reference CHECKPOINT --data DATASET`",
            path,
            path,
        )
    if parity is not None and not parity.passed and not force:
        reason = "; ".join(parity.problems) or f"mIoU drop {parity.miou_drop:.2f}, allowed {parity.max_drop:g}"
        raise GateError(f"{path}: failed its accuracy gate ({reason}); build one that passes, or pass --force")


def require_shadow(path: Path, engine: Path) -> None:
    """Raise DataError if `path` cannot run beside `engine`: it is the same, or no file of an engine."""
    if not has_record(path):
        raise DataError(
            f"--shadow {path}: expected an engine file (.xml, .engine); a checkpoint or a server cannot be a shadow"
        )
    if path.resolve() == engine.resolve():
        raise DataError(f"--shadow {path}: is the engine in service itself; give another one")


def profile_of_engine(path: Path) -> FieldProfile | None:
    """What the engine's record says of its evaluation set; None for a checkpoint or a server, or where no gate was held."""
    return Engine.load_record(path).profile if has_record(path) else None


def engine_names(engine: Path, shadow: Path | None) -> dict[str, Path]:
    """What results call the engine in service and its shadow: file names, with folders before them where they are alike."""
    if shadow is None or shadow.name != engine.name:
        return {path.name: path for path in (engine, *([shadow] if shadow else []))}
    near = {f"{path.parent.resolve().name}/{path.name}": path for path in (engine, shadow)}
    return near if len(near) == 2 else {str(path.resolve()): path for path in (engine, shadow)}


def open_field(
    paths: Mapping[str, Path], backend: AsyncBackend, collect: CollectPlan | None, *, source: str, live: bool
) -> FieldWatch | None:
    """The watch over drift and the collector of frames; None where no engine has a profile and nothing is collected.

    paths: by name, the engine in service first, then another that may take over.
    """
    profiles = {name: profile_of_engine(path) for name, path in paths.items()}
    if not any(profiles.values()) and collect is None:
        return None
    collector = None
    if collect is not None:
        kind = "encoder" if any(spec.name == "features" for spec in backend.outputs) else "answers"
        name = next(iter(paths))
        collector = Collector(collect, backend.classes, features=kind, source=source, engine=name, wait=not live)
    others = list(paths.items())[1:]  # which may take over; the first is open
    preprocess = {name: Engine.load_record(path).meta.preprocess for name, path in others if has_record(path)}
    return FieldWatch(backend, profiles, live=live, collector=collector, preprocess=preprocess)


def open_served(
    path: Path,
    *,
    live: bool,
    threads: int | None,
    blend: bool,
    features: bool = False,
    reuse: Reuse = "off",
    smooth: float = 0.0,
) -> Served:
    """An engine and its stages, as the loop swaps them in."""
    backend = open_engine(path, live=live, threads=threads, features=features)
    try:
        return Served(path.name, backend, open_stages(backend, blend=blend, reuse=reuse, smooth=smooth))
    except BaseException:
        backend.close()
        raise


def open_engine(
    path: Path, *, live: bool, threads: int | None, batch_wait_ms: float | None = None, features: bool = False
) -> AsyncBackend:
    """Open the engine, with the requests in flight that the kind of source wants.

    Live: one, on all cores, because a frame that queues grows old. Files: one a core (up to `MAX_STREAMS`), which gives
    the most frames a second, and one more, so that none of them waits for its next picture. A GPU's also hold results.
    A checkpoint runs in PyTorch, on a GPU only: the way to the whole CUDA loop where there is no TensorRT.
    `features`: also give the encoder's features, where the back end can.
    batch_wait_ms: frames are put together into batches of the size that the engine was built for, and none waits longer.
    """
    if (address := served_address(path)) is not None:
        return TritonBackend(address, slots=1 if live else SERVED_SLOTS)
    if batch_wait_ms is not None:
        return _open_batching(path, batch_wait_ms, threads)
    on_gpu = slots_needed(1 if live else IN_FLIGHT, ready=ready_results(live=live))
    if is_checkpoint(path):
        from tsss_edge.backends.torch_engine import TorchEngine

        return TorchEngine(Checkpoint.load(path), slots=on_gpu, device="cuda")
    cores = threads or usable_cores()
    slots = 1 if live else min(cores, MAX_STREAMS) + 1
    if path.suffix == ".engine":
        slots = on_gpu
    try:
        backend = open_backend(path, threads=cores, slots=slots, features=features)
    except UnavailableError as error:
        if "cannot be imported" in str(error) and path.suffix == ".engine":
            raise UnavailableError(
                f"{error}; or stream its checkpoint, which PyTorch runs on the GPU in the same loop"
            ) from error
        raise
    assert isinstance(backend, AsyncBackend), "every engine's back end is"
    if backend.min_batch > 1:
        backend.close()
        raise ArtifactError(
            f"{path}: takes {backend.min_batch} pictures at a time and a stream has one; build an engine whose target "
            "has a least batch of 1"
        )
    return backend


def _open_batching(path: Path, wait_ms: float, threads: int | None) -> AsyncBackend:
    engine = Engine.load(path)
    least, usual, _ = engine.record.build.target.batch
    if least > 1:
        raise ArtifactError(
            f"{path}: takes {least} pictures at least, and a batch of frames may have one; build for a target with a least batch of 1"
        )
    if engine.record.inputs[0].shape[0] > 0 or usual < 2:
        raise ArtifactError(
            f"{path}: takes {max(1, engine.record.inputs[0].shape[0])} picture at a time; --batch-wait-ms needs an engine of a free "
            "batch: `export --batch 0`, and a target with batch = [1, 4, 8]"
        )
    backend = open_backend(engine, threads=threads or usable_cores(), slots=BATCHES)
    assert isinstance(backend, AsyncBackend)
    return BatchingBackend(backend, batch=usual, wait_ms=wait_ms, slots=BATCHES * usual)


def open_stages(
    backend: AsyncBackend,
    *,
    blend: bool | Collection[int],
    slots: int | None = None,
    reuse: Reuse = "off",
    smooth: float = 0.0,
) -> Stages:
    """Put all stages on the GPU where engine and machine allow it, else those around the network on the CPU.

    Args:   blend: make blended pictures; or in which slots. slots: of many cameras, on the CPU; default: what one source needs.
            smooth: weight of the frames before, see `smooth.py`.
    Raises: UnavailableError: `reuse` or `smooth` of an engine on a GPU, whose loop runs every frame by itself, or both at once.
    """
    if given := [
        name for name, on in ((f"--reuse {reuse}", reuse != "off"), (f"--smooth {smooth:g}", smooth > 0)) if on
    ]:
        if isinstance(backend, DeviceEngine):
            raise UnavailableError(f"{given[0]} works with engines on a CPU; leave it away on a GPU")
        if len(given) == 2:
            raise UnavailableError(f"{given[0]} leaves frames out that {given[1]} would mix; give one of them")
        if smooth > 0:
            return SmoothStages(backend, blend=bool(blend), weight=smooth)
        return ReuseStages(backend, blend=bool(blend), reuse=reuse)
    if not isinstance(backend, DeviceEngine) or slots is not None or not isinstance(blend, bool):
        return CpuStages(backend, blend=blend, slots=slots)
    try:
        return open_cuda_stages(backend, blend=blend)
    except UnavailableError as error:
        stages = CpuStages(backend, blend=blend)
        stages.name = f"{backend.name}, other stages on the CPU: {error}"
        return stages
