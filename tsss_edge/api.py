"""The Python face: what every command does, as one function each. Paths may be strings; loaded artifacts are taken as they are.

`import tsss_edge` offers these functions under their own names. Heavy modules are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

from tsss_edge.artifacts import (
    Artifact,
    Checkpoint,
    Engine,
    OnnxModel,
    Precision,
    Reference,
    Target,
    load_artifact,
    load_reference,
)
from tsss_edge.config import TrainConfig, load_target, read_toml

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from tsss_edge.artifacts import Classes, Preprocess
    from tsss_edge.backends import Backend
    from tsss_edge.export.foreign import ForeignReport
    from tsss_edge.export.foreign.normalise import Colors
    from tsss_edge.parity import ParityReport
    from tsss_edge.segment import SegmentReport
    from tsss_edge.segmentation import Segmentation
    from tsss_edge.stream.many import ManyReport
    from tsss_edge.stream.recorder import StreamReport

T = TypeVar("T")
PathLike: TypeAlias = "str | Path"
CHECK_PICTURES = 8  # an exported graph is compared with PyTorch on so many


class Model:
    """A network that segments pictures. It holds memory and threads until `close`; `with` closes it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def classes(self) -> Classes:
        """Names and colours of the label ids."""
        return self._backend.classes

    @property
    def preprocess(self) -> Preprocess:
        """How a picture is fitted to the network's input."""
        return self._backend.preprocess

    def __call__(self, image: PathLike | NDArray[np.uint8]) -> Segmentation:
        """Segment a picture: a file, or (H,W,3) uint8 RGB. Raises: DataError: not a readable picture."""
        from tsss_edge.data.pictures import read_image
        from tsss_edge.segment import segment_image
        from tsss_edge.segmentation import Segmentation

        pixels = read_image(Path(image)) if isinstance(image, str | Path) else image
        return Segmentation(segment_image(self._backend, pixels), pixels, self.classes)

    def close(self) -> None:
        """Free what the network holds."""
        self._backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load(
    path: PathLike | Artifact, *, device: str | None = None, threads: int | None = None, trust: bool = False
) -> Model:
    """A checkpoint (`.pt` or run folder), ONNX file or engine (`.xml`, `.engine`) -> a model. Options: see `open_backend`."""
    from tsss_edge.backends import open_backend

    return Model(open_backend(_loaded(path, trust=trust), device=device, threads=threads))


def train(
    data: PathLike,
    out: PathLike,
    *,
    strong: Sequence[str] | None = None,
    config: PathLike | TrainConfig | None = None,
    resume: bool = False,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Checkpoint:
    """Train on the set `data` into the run folder `out`.

    Args:   strong: categories with pixel masks; all others are learnt from image-level labels (`train all`).
            None: all categories have masks (`train supervised`).
            config: TOML file or settings; `settings` (arch, epochs, size_hw, seed, ...) win over it.
            options: further arguments of `train_all` or `train_supervised`.
    Raises: DataError, ArtifactError: unusable set or `out`. ValueError: a bad setting or category.
    """
    chosen, more = training_settings(Path(data), config, **settings), _with_paths(options or {}, "unlabelled", "source")
    if strong is None:
        from tsss_edge.train.supervised import train_supervised

        return train_supervised(chosen, Path(data), Path(out), resume=resume, **more)
    from tsss_edge.train.all import train_all

    return train_all(chosen, Path(data), Path(out), strong=tuple(strong), resume=resume, **more)


def training_settings(data: Path, config: PathLike | TrainConfig | None = None, **changes: Any) -> TrainConfig:
    """`config`, or the defaults, with `changes` in their place (None changes nothing). The network's input follows the size of
    the pictures where neither names one. Raises: ValueError: a size that is not a multiple of 32, or another bad setting."""
    from tsss_edge.data.voc import VocDataset, suggested_size_hw

    base = (
        config if isinstance(config, TrainConfig) else read_toml(Path(config), TrainConfig) if config else TrainConfig()
    )
    changes = {name: value for name, value in changes.items() if value is not None}
    named = isinstance(config, TrainConfig) or (config is not None and "size_hw" in read_toml(Path(config), dict))
    if not named and "size_hw" not in changes:
        changes["size_hw"] = suggested_size_hw(VocDataset.open(data))
    settings = msgspec.structs.replace(base, **changes)
    _ = settings.preprocess  # refuses sizes that are not multiples of 32
    return settings


def export(
    checkpoint: PathLike | Checkpoint, out: PathLike, *, data: PathLike | None = None, **options: Any
) -> OnnxModel:
    """Write the fused graph as ONNX. data: a set whose pictures check it against PyTorch. Options: see `export_onnx`."""
    from tsss_edge.export.onnx_export import export_onnx

    if data is not None:
        options["check_images"] = _check_pictures(Path(data))
    return export_onnx(_checkpoint(checkpoint), Path(out), **options)


def _check_pictures(data: Path) -> list[Path]:
    from tsss_edge.data.voc import VocDataset

    dataset = VocDataset.open(data)
    split = "val" if "val" in dataset.splits else dataset.splits[0]
    return [dataset.image_path(image_id) for image_id in dataset.ids(split)[:CHECK_PICTURES]]


def import_model(
    network: PathLike | torch.nn.Module,
    out: PathLike,
    *,
    classes: Classes | Sequence[str],
    example: torch.Tensor | tuple[int, int] | None = None,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    scale: float = 1 / 255,
    colors: Colors = "rgb",
    data: PathLike | None = None,
    **options: Any,
) -> ForeignReport:
    """Wrap a segmentation network of your own: an ONNX file, or a PyTorch module with an `example` input or its size.

    Args:   classes: names by channel; a first "background" is the background. mean, std, scale, colors: the network sees
            `(value * scale - mean) / std`. data: a set whose pictures check it. Options: see `export.foreign.import_onnx`.
    Raises: ArtifactError: it cannot be imported, in one sentence. ValueError: a module without an `example`.
    """
    from tsss_edge.artifacts import Classes
    from tsss_edge.export.foreign import import_module, import_onnx
    from tsss_edge.export.foreign.normalise import Normalisation

    how = Normalisation(mean=mean, std=std, scale=scale, colors=colors)
    if not isinstance(classes, Classes):
        classes = Classes(names=tuple(classes), background=tuple(classes)[:1] == ("background",))
    pictures = _check_pictures(Path(data)) if data is not None else []
    if isinstance(network, str | Path):
        return import_onnx(Path(network), Path(out), classes=classes, how=how, check_images=pictures, **options)
    if example is None:
        raise ValueError("a module needs `example`: one input, (1,3,H,W) float32, or its (height, width)")
    return import_module(network, example, Path(out), classes=classes, how=how, check_images=pictures, **options)


def calibrate(model: PathLike | OnnxModel, data: PathLike, out: PathLike, **options: Any) -> OnnxModel:
    """Find INT8 ranges on the training split of `data` and write the INT8 graph. Options: see `calib.calibrate`."""
    from tsss_edge.calib.calibrate import calibrate as run

    return run(
        OnnxModel.load(Path(model)) if isinstance(model, str | Path) else model, Path(data), Path(out), **options
    )


def build_engine(
    model: PathLike | Checkpoint | OnnxModel,
    target: str | Target,
    out: PathLike,
    *,
    precision: Precision | None = None,
    calib_data: PathLike | None = None,
    eval_data: PathLike | None = None,
    reference: PathLike | Reference | None = None,
    split: str = "val",
) -> Engine:
    """Build an engine for this machine and write it with its record.

    Args:   target: a target in export/ (cpu, rtx, ...) or a `.toml` file.
            eval_data: labelled set; all candidates are built, and the fastest that passes the gate is kept.
            Others: see `export.build` and `deploy.choose`.
    """
    source, wanted = _source(model), load_target(target) if isinstance(target, str) else target
    calibration = Path(calib_data) if calib_data is not None else None
    if eval_data is None:
        if reference is not None:
            raise ValueError("a reference is for the gate, which needs a labelled set; give --eval-data too")
        from tsss_edge.export.build import build_engine as build_one

        return build_one(source, wanted, Path(out), precision=precision, calib_data=calibration)
    from tsss_edge.deploy.choose import choose_engine

    return choose_engine(
        source,
        wanted,
        Path(out),
        eval_data=Path(eval_data),
        precision=precision,
        reference=_reference(reference) if reference is not None else None,
        calib_data=calibration,
        split=split,
    )


def check_parity(
    engine: PathLike | Artifact,
    reference: PathLike | Reference,
    data: PathLike,
    *,
    report_dir: PathLike | None = None,
    **options: Any,
) -> ParityReport:
    """Compare an engine with its reference on a labelled set; the report is true when the gate holds. Options: see `parity`.

    The reference is the checkpoint that it was made from, a folder of that checkpoint's answers, or the FP32 file of
    `import_model`.
    """
    from tsss_edge.parity import check_parity as run

    folder = Path(report_dir) if report_dir is not None else None
    given = Path(reference) if isinstance(reference, str) else reference
    loaded = _loaded(engine, trust=bool(options.get("trust", False)))
    return run(loaded, given, Path(data), report_dir=folder, **_with_paths(options, "served"))


def segment(engine: PathLike, inputs: PathLike | Sequence[PathLike], out: PathLike, **options: Any) -> SegmentReport:
    """Write a mask for every picture of files, folders and globs. Options: see `segment_files`."""
    from tsss_edge.segment import segment_files

    several = [inputs] if isinstance(inputs, str | Path) else inputs
    return segment_files(Path(engine), [str(item) for item in several], Path(out), **_with_paths(options, "sheet"))


def stream(
    engine: PathLike,
    source: PathLike,
    sinks: PathLike | Sequence[PathLike] = "null://",
    *,
    reference: PathLike | None = None,
    **options: Any,
) -> StreamReport:
    """Segment a camera or a video until it ends. Options: see `stream.live_loop.stream`."""
    from tsss_edge.stream.live_loop import stream as run

    several = [sinks] if isinstance(sinks, str | Path) else sinks
    checkpoint = Path(reference) if reference is not None else None
    given = _with_paths(options, "truth", "shadow", "promote_when", "trusted_key", "tls")
    return run(Path(engine), str(source), [str(sink) for sink in several], reference=checkpoint, **given)


def stream_many(engine: PathLike, sources: PathLike, **options: Any) -> ManyReport:
    """Segment all cameras of a file on one engine until the last one ends. Options: see `stream.many.stream_many`."""
    from tsss_edge.stream.many import stream_many as run

    return run(Path(engine), Path(sources), **_with_paths(options, "trusted_key", "tls"))


# ---------------------------------------------------------------------------------------------------------------------
# The door


def _with_paths(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options with paths, or tuples of them, in place of the strings of these."""

    def path_of(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(path_of(part) for part in value)
        return Path(value) if isinstance(value, str) else value

    return {name: path_of(value) if name in names else value for name, value in options.items()}


def _loaded(model: PathLike | Artifact, *, trust: bool = False) -> Artifact:
    return load_artifact(Path(model) if isinstance(model, str) else model, trust=trust)


def _checkpoint(model: PathLike | Checkpoint) -> Checkpoint:
    return Checkpoint.load(Path(model)) if isinstance(model, str | Path) else model


def _reference(model: PathLike | Reference) -> Reference:
    return load_reference(Path(model) if isinstance(model, str) else model)


def _source(model: PathLike | Checkpoint | OnnxModel) -> Path | Checkpoint | OnnxModel:
    return Path(model) if isinstance(model, str) else model
