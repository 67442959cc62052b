"""What a builder hands back: the files it made and what it knows about them."""

from __future__ import annotations

from typing import Any

import msgspec

from tsss_edge.artifacts import OnnxModel, Struct, TensorSpec
from tsss_edge.backends.base import output_specs


class Built(Struct, frozen=True):
    """Files in the staging folder (the engine first) and the facts for its record."""

    files: tuple[str, ...]
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    versions: dict[str, str]
    # convolutions by the precision they really run in; empty where nobody can tell
    realised: dict[str, int] = msgspec.field(default_factory=dict)
    flags: dict[str, Any] = msgspec.field(default_factory=dict)
    kept: tuple[str, ...] = ()  # further files to keep beside the engine, which it does not need to run


def expected_outputs(source: OnnxModel) -> tuple[TensorSpec, ...]:
    """What the graph's description promises to give, batch free."""
    meta = source.meta
    return output_specs(meta.classes, meta.preprocess, head=meta.head, objectness=meta.objectness)
