"""An ONNX file -> a back end on ONNX Runtime's CPU provider: the reference between PyTorch and the engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import OnnxModel, TensorSpec
from tsss_edge.backends.base import Outputs
from tsss_edge.backends.common import Closing, import_extra, require_images
from tsss_edge.errors import ArtifactError

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OnnxRuntimeBackend(Closing):
    """FP32 and INT8 as the file says. FP16 files run too, but not with a GPU's FP16 rounding (CPU kernels widen)."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load the graph at `path`.

        Raises: ArtifactError: missing, damaged, not ours. UnavailableError: ONNX Runtime is not installed.
        """
        model = OnnxModel.load(path)
        runtime = import_extra("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors; the file is checked by us
        if threads:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise ArtifactError(f"{path}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error
        self.name = f"onnxruntime {model.meta.precision}"
        self.classes = model.meta.classes
        self.preprocess = model.meta.preprocess
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(node) for node in self._session.get_outputs())
        self._input = _spec(self._session.get_inputs()[0])
        _require_size(path, self._input, model.meta.preprocess.size_hw)
        self.min_batch = max(1, self._input.shape[0])

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """(N,H,W,3) uint8 RGB -> arrays by output name, new at each call."""
        require_images(images, self.preprocess.size_hw)
        if 0 < self._input.shape[0] != images.shape[0]:
            raise ValueError(f"this graph takes batches of {self._input.shape[0]}, got {images.shape[0]}")
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, {self._input.name: images}), strict=True))

    def close(self) -> None:
        self._session = None


def _spec(node: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else -1 for d in node.shape)
    return TensorSpec(name=node.name, dtype=_DTYPES.get(node.type, node.type), shape=shape)


def _require_size(path: Path, spec: TensorSpec, size_hw: tuple[int, int]) -> None:
    if spec.dtype != "uint8" or spec.shape[1:] != (*size_hw, 3):
        raise ArtifactError(
            f"{path}: its input is {spec.dtype} {spec.shape}, its description says uint8 (N,{size_hw[0]},{size_hw[1]},3); "
            "export it again"
        )
