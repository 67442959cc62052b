"""A TensorRT engine -> what DeepStream needs to run the same plan: two configurations, labels, palette.

The engine takes uint8 pixels, rows of RGB, and gives logits at stride 8. So `nvdspreprocess` makes the tensor (uint8, NHWC, scaled) and
`nvinfer` takes it from the metadata; its own preprocessing gives floats only. Keys after NVIDIA's pages "Gst-nvdspreprocess" and
"Gst-nvinfer", sections "File Configuration Specifications" (docs.nvidia.com/metropolis/deepstream/dev-guide). Not run: no DeepStream
was at hand.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tsss_edge.artifacts import Engine, EngineRecord, TensorSpec
from tsss_edge.errors import ArtifactError
from tsss_edge.export.build import folder_beside
from tsss_edge.files import write_json

LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/gst-plugins/libcustom2d_preprocess.so"  # comes with DeepStream
UNIQUE_ID = 1
MODES = {"fp32": 0, "int8": 1, "fp16": 2, "bf16": 2}  # nvinfer's network-mode; a plan that is there keeps its own
README = """# {name} in DeepStream

    gst-launch-1.0 uridecodebin uri=file:///video.mp4 ! m.sink_0 nvstreammux name=m batch-size={batch} width=1280 height=720 ! \\
        nvdspreprocess config-file=preprocess.txt ! nvinfer config-file-path=infer.txt input-tensor-meta=true ! \\
        nvsegvisual width={width} height={height} ! nvvideoconvert ! fakesink

Run it in this folder, on the device the plan was built for ({device}; {versions}). `nvinfer` reads the largest logit of each cell, at
stride 8 of {width}x{height}, and attaches NvDsInferSegmentationMeta; a cell without a logit above 0 gets no class (-1).
`labels.txt` names the ids, `palette.json` gives each its RGB colour. `record.json` is the engine's record{proof}.
"""


def write_deepstream(engine: Path | Engine, out: Path, *, sources: int = 1) -> Path:
    """Write plan, `preprocess.txt`, `infer.txt`, `labels.txt`, `palette.json`, `record.json` and README.md to the new folder `out`.

    Args:    sources: cameras that share the engine; their frames fill a batch.
    Returns: `out`.
    Raises:  ArtifactError: DeepStream cannot run this engine (another back end than TensorRT, no logits, a cropped input, too small
             a batch), its hash is wrong, or `out` exists.
    """
    loaded = Engine.load(engine) if isinstance(engine, Path) else engine
    _require_served(loaded, sources)
    if out.exists():
        raise ArtifactError(f"{out}: exists already; choose another --out")
    record = loaded.record
    with folder_beside(out) as staging:
        for file in record.files:
            shutil.copyfile(loaded.path.parent / file, staging / file)
        shutil.copyfile(Engine.record_path(loaded.path), staging / "record.json")
        classes = record.meta.classes
        (staging / "labels.txt").write_text("".join(f"{name}\n" for name in classes.names))
        write_json(staging / "palette.json", dict(zip(classes.names, classes.palette, strict=True)))
        (staging / "preprocess.txt").write_text(preprocess_text(record, sources))
        (staging / "infer.txt").write_text(infer_text(record, loaded.path.name, sources))
        (staging / "README.md").write_text(_readme(record, loaded.path.name, sources))
        staging.chmod(0o755)
        staging.rename(out)
    return out


def _require_served(engine: Engine, sources: int) -> None:
    record = engine.record
    if record.backend != "tensorrt":
        raise ArtifactError(
            f"{engine.path}: runs in {record.backend}; DeepStream runs TensorRT plans (--target jetson, datacenter)"
        )
    if _logits(record) is None:
        raise ArtifactError(
            f"{engine.path}: gives no logits, which nvinfer's segmentation reads; export with --head logits"
        )
    if record.meta.preprocess.fit == "crop":
        raise ArtifactError(
            f"{engine.path}: its network sees the middle of a frame (fit crop), which nvdspreprocess does not cut"
        )
    least, most = _batches(record)
    if not least <= sources <= most:
        raise ArtifactError(
            f"{engine.path}: takes {least} to {most} pictures at once, not {sources}; build with another batch"
        )


def preprocess_text(record: EngineRecord, sources: int) -> str:
    """The text of nvdspreprocess's configuration."""
    height, width = record.meta.preprocess.size_hw
    boxed = int(record.meta.preprocess.fit == "letterbox")
    keys = {
        "enable": 1,
        "target-unique-ids": UNIQUE_ID,
        "process-on-frame": 1,
        "network-input-order": 1,  # NHWC
        "network-input-shape": f"{sources};{height};{width};3",
        "network-color-format": 0,  # RGB
        "tensor-data-type": 1,  # UINT8
        "tensor-name": record.inputs[0].name,
        "processing-width": width,
        "processing-height": height,
        "maintain-aspect-ratio": boxed,
        "symmetric-padding": boxed,
        "scaling-filter": 1,  # bilinear
        "custom-lib-path": LIBRARY,
        "custom-tensor-preparation-function": "CustomTensorPreparation",
    }
    group = {
        "src-ids": ";".join(map(str, range(sources))),
        "custom-input-transformation-function": "CustomAsyncTransformation",
        "process-on-roi": 0,
    }
    return _text({"property": keys, "user-configs": {"pixel-normalization-factor": 1.0}, "group-0": group})


def infer_text(record: EngineRecord, plan: str, sources: int) -> str:
    """The text of nvinfer's configuration."""
    logits = _logits(record)
    assert logits is not None
    keys = {
        "gie-unique-id": UNIQUE_ID,
        "process-mode": 1,  # whole frames
        "model-engine-file": plan,
        "labelfile-path": "labels.txt",
        "batch-size": sources,
        "network-mode": MODES[record.precision],
        "network-type": 2,  # semantic segmentation
        "num-detected-classes": len(record.meta.classes),
        "input-tensor-from-meta": 1,
        "output-blob-names": logits.name,
        "segmentation-output-order": 0,  # NCHW
        "segmentation-threshold": 0.0,
    }
    core = record.build.target.dla_core
    dla = {} if core is None else {"enable-dla": 1, "use-dla-core": core}
    return _text({"property": keys | dla})


def _text(groups: dict[str, dict[str, object]]) -> str:
    parts = [
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in keys.items()) for name, keys in groups.items()
    ]
    return "\n".join(parts)


def _logits(record: EngineRecord) -> TensorSpec | None:
    return next((spec for spec in record.outputs if spec.name == "logits"), None)


def _batches(record: EngineRecord) -> tuple[int, int]:
    """The least and the most pictures that the plan takes."""
    fixed = record.inputs[0].shape[0]
    least, _, most = record.build.target.batch
    return (least, most) if fixed < 0 else (fixed, fixed)


def _readme(record: EngineRecord, plan: str, sources: int) -> str:
    height, width = record.meta.preprocess.size_hw
    passed = record.parity is not None and record.parity.passed
    return README.format(
        name=plan,
        batch=sources,
        width=width,
        height=height,
        device=record.device or "not recorded",
        versions=", ".join(f"{k} {v}" for k, v in record.versions.items()),
        proof="; the plan passed its accuracy gate"
        if passed
        else "; nobody has proven the plan: run `tsss-edge parity` on it first",
    )
