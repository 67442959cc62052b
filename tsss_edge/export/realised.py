"""What TensorRT's engine inspector says of a built plan -> convolutions counted by the precision they really run in.

The JSON differs by version: "Row major linear FP16 format" (8.x) against "Half" (10 and later), "N/A due to dynamic shapes"
for tensors of free size. The type of a convolution's weights is told in all of them, so it is asked first.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

# Words of the inspector for a type; the first that occurs counts ("BFloat16" before "Float16").
_WORDS = (
    ("bf16", ("bf16", "bfloat16")),
    ("fp16", ("fp16", "half", "float16")),
    ("int8", ("int8",)),
    ("fp8", ("fp8",)),
    ("fp32", ("fp32", "float")),
)


def realised_precisions(information: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """The inspector's JSON -> ({precision: convolutions}, names of the layers in FP32). Both empty where it tells nothing."""
    layers = msgspec.json.decode(information.encode(), type=dict).get("Layers", []) if information else []
    counts: Counter[str] = Counter()
    left = []
    for layer in layers:
        if not isinstance(layer, dict) or not _is_convolution(layer):  # names only: built without detail
            continue
        kind = _precision(layer)
        counts[kind] += 1
        if kind == "fp32":
            left.append(str(layer.get("Name", "")))
    return dict(sorted(counts.items())), tuple(left)


def _is_convolution(layer: dict[str, Any]) -> bool:
    return "conv" in f"{layer.get('ParameterType', '')} {layer.get('LayerType', '')}".lower()


def _precision(layer: dict[str, Any]) -> str:
    weights = layer.get("Weights")
    told = [weights.get("Type", "")] if isinstance(weights, dict) else []
    told += [tensor.get("Format/Datatype", "") for tensor in layer.get("Inputs", []) if isinstance(tensor, dict)]
    for text in told:
        for kind, words in _WORDS:
            if any(word in str(text).lower() for word in words):
                return kind
    return "unknown"
