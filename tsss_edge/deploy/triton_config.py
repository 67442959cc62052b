"""The texts of a Triton model repository: `config.pbtxt` of a network, of the steps around it and of their ensembles; OpenVINO
Model Server's `config.json`.

Sources: Triton's model configuration (github.com/triton-inference-server/server, docs/user_guide/model_configuration.md,
architecture.md), the parameters of its openvino_backend, and OpenVINO Model Server's docs/models_repository.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from tsss_edge.artifacts import Struct, TensorSpec
from tsss_edge.backends.triton_client import DESCRIPTION

TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32"}
QUEUE_DELAY_US = 2000  # Triton waits so long for a fuller batch: an eighth of a 60 fps frame
KEPT_VERSIONS = 2  # the newest, and the one before it for the way back
LABELS = "labels.txt"
OVMS_ROOT = "/models"  # where OpenVINO Model Server's container has the repository

Runner = Literal["openvino", "onnxruntime", "tensorrt", "python"]
_SERVED_BY: dict[Runner, str] = {
    "openvino": 'backend: "openvino"',
    "onnxruntime": 'backend: "onnxruntime"',
    "tensorrt": 'backend: "tensorrt"\nplatform: "tensorrt_plan"',
    "python": 'backend: "python"',
}


class ServedNetwork(Struct, frozen=True):
    """What `config.pbtxt` says of a network. Shapes of `inputs` and `outputs` without the batch where `max_batch` is above 0."""

    name: str
    runner: Runner
    file: str  # in the version's folder
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int  # 0: the graph's shapes are whole, and Triton does not batch
    instances: int = 1
    gpu: bool = False
    precision: str = "fp32"
    description: str = ""  # for clients: JSON of a `ServedDescription`


def network_config(model: ServedNetwork) -> str:
    """Batching under a deadline, warm-up, the two newest versions, class names, and the settings of what runs it."""
    kind = "KIND_GPU" if model.gpu else "KIND_CPU"
    parts = [
        f'name: "{model.name}"',
        _SERVED_BY[model.runner],
        f"max_batch_size: {model.max_batch}",
        tensors("input", model.inputs),
        tensors("output", model.outputs, labels=LABELS),
        f"instance_group [\n  {{\n    kind: {kind}\n    count: {model.instances}\n  }}\n]",
        f"version_policy {{\n  latest {{\n    num_versions: {KEPT_VERSIONS}\n  }}\n}}",
        _warm_up(model),
        *_settings(model),
    ]
    if model.runner != "python":
        parts.insert(2, f'default_model_filename: "{model.file}"')
    if model.max_batch > 1:
        parts.append(f"dynamic_batching {{\n  max_queue_delay_microseconds: {QUEUE_DELAY_US}\n}}")
    return "\n".join(parts) + "\n"


def _settings(model: ServedNetwork) -> list[str]:
    """OpenVINO: one stream an instance, and no bf16 that a file of another precision did not ask for."""
    values = {DESCRIPTION: model.description} if model.description else {}
    if model.runner == "openvino":
        values |= {"PERFORMANCE_HINT": "LATENCY", "HINT_BF16": "YES" if model.precision == "bf16" else "NO"}
    graphs = ["optimization {\n  cuda {\n    graphs: true\n  }\n}"] if model.runner == "tensorrt" else []
    return parameters(values) + graphs


def parameters(values: Mapping[str, str]) -> list[str]:
    """`parameters` of a model."""
    texts = {key: value.replace("\\", "\\\\").replace('"', '\\"') for key, value in values.items()}
    return [f'parameters {{\n  key: "{k}"\n  value {{\n    string_value: "{v}"\n  }}\n}}' for k, v in texts.items()]


def _warm_up(model: ServedNetwork) -> str:
    """The smallest and the largest batch of black pictures, before the model counts as ready."""
    sizes = sorted({1, model.max_batch or 1})
    return "\n".join(_warm_up_of(model, size) for size in sizes)


def _warm_up_of(model: ServedNetwork, size: int) -> str:
    inputs = "".join(
        f'  inputs {{\n    key: "{s.name}"\n    value {{\n      data_type: {TYPES[s.dtype]}\n      dims: {dims(s.shape)}\n'
        "      zero_data: true\n    }\n  }\n"
        for s in model.inputs
    )
    return f'model_warmup {{\n  name: "batch of {size}"\n  batch_size: {size}\n{inputs}}}'


def dims(shape: Sequence[int]) -> str:
    """`[ 1, 64, 96, 3 ]`."""
    return f"[ {', '.join(map(str, shape))} ]"


def tensors(field: str, specs: Sequence[TensorSpec], *, labels: str = "") -> str:
    """`input [...]` or `output [...]`. labels: file with the names of the classes."""
    named = f'\n    label_filename: "{labels}"' if labels else ""
    items = [
        f'  {{\n    name: "{s.name}"\n    data_type: {TYPES[s.dtype]}\n    dims: {dims(s.shape)}{named}\n  }}'
        for s in specs
    ]
    return f"{field} [\n" + ",\n".join(items) + "\n]"


def step_config(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """A Python model before or after the network: one picture a call, of any size."""
    parts = [
        f'name: "{name}"',
        'backend: "python"',
        "max_batch_size: 0",
        tensors("input", inputs),
        tensors("output", outputs),
        "instance_group [\n  {\n    kind: KIND_CPU\n    count: 1\n  }\n]",
    ]
    return "\n".join(parts) + "\n"


class EnsembleStep(Struct, frozen=True):
    """A model in an ensemble: its own tensor names, and those of the ensemble that they are tied to."""

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def ensemble_config(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], steps: Sequence[EnsembleStep]
) -> str:
    """Models tied together: what one gives the next takes, and nothing leaves the server between them."""
    parts = [
        f'name: "{name}"',
        'platform: "ensemble"',
        "max_batch_size: 0",
        tensors("input", inputs),
        tensors("output", outputs),
        "ensemble_scheduling {\n" + "\n".join(_step(step) for step in steps) + "\n}",
    ]
    return "\n".join(parts) + "\n"


def _step(step: EnsembleStep) -> str:
    ties = [
        f'    {field} {{\n      key: "{own}"\n      value: "{shared}"\n    }}'
        for field, ties in (("input_map", step.inputs), ("output_map", step.outputs))
        for own, shared in ties.items()
    ]
    return f'  step {{\n    model_name: "{step.model}"\n    model_version: -1\n' + "\n".join(ties) + "\n  }"


def ovms_config(names: Sequence[str]) -> bytes:
    """`config.json` of OpenVINO Model Server for the networks that it can run; it reads the same version folders."""
    models = [
        {
            "config": {
                "name": n,
                "base_path": f"{OVMS_ROOT}/{n}",
                "model_version_policy": {"latest": {"num_versions": 2}},
            }
        }
        for n in names
    ]
    return msgspec.json.format(msgspec.json.encode({"model_config_list": models}), indent=2) + b"\n"
