"""The models that run inside Triton's Python back end: a network, and the steps before and after it in an ensemble.

`triton_python_backend_utils` exists only there. Outputs are copied: Triton sends them after the next call has begun.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tsss_edge.artifacts import Preprocess
from tsss_edge.files import parse_json


class _Model:
    """What Triton calls. A request that fails gets its own error; the others of its batch get their answers."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read `settings.json` of this version."""
        self.utils = importlib.import_module("triton_python_backend_utils")
        self.folder = Path(args["model_repository"]) / args["model_version"]
        self.settings: dict[str, Any] = parse_json((self.folder / "settings.json").read_bytes())

    def input(self, request: Any, name: str) -> Any:
        return self.utils.get_input_tensor_by_name(request, name).as_numpy()

    def response(self, outputs: dict[str, Any]) -> Any:
        tensors = [self.utils.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
        return self.utils.InferenceResponse(output_tensors=tensors)

    def failure(self, error: Exception) -> Any:
        return self.utils.InferenceResponse(output_tensors=[], error=self.utils.TritonError(str(error)))


class NetworkModel(_Model):
    """An engine or ONNX file of the version's folder. Requests that Triton hands over together run as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the network."""
        super().initialize(args)
        from tsss_edge.backends import open_backend

        self.network = open_backend(self.folder / self.settings["file"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """`image` (N,H,W,3) of every request -> the network's outputs."""
        pictures = [self.input(request, "image") for request in requests]
        try:
            found = self.network.infer(np.concatenate(pictures))
        except Exception as error:  # whatever it is belongs to the clients
            return [self.failure(error) for _ in requests]
        ends = np.cumsum([len(p) for p in pictures])
        rows = [slice(end - len(p), end) for end, p in zip(ends, pictures, strict=True)]
        return [self.response({name: np.array(array[row]) for name, array in found.items()}) for row in rows]

    def finalize(self) -> None:
        self.network.close()


class _Step(_Model):
    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        self.preprocess = msgspec.convert(self.settings["preprocess"], Preprocess)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One request after the other: their pictures have sizes of their own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return self.response(self.one(request))
        except Exception as error:
            return self.failure(error)

    def one(self, request: Any) -> dict[str, Any]:
        raise NotImplementedError


class PreModel(_Step):
    """`jpeg` (bytes of any picture file) or `frame` (H,W,3) RGB -> `image` (1,h,w,3), `frame_hw` (2,)."""

    def one(self, request: Any) -> dict[str, Any]:
        from tsss_edge.kernels.preprocess import preprocess

        frame = self._frame(request)
        image = preprocess(frame, self.preprocess, bgr=False)[None]
        return {"image": image, "frame_hw": np.array(frame.shape[:2], np.int32)}

    def _frame(self, request: Any) -> Any:
        given = self.utils.get_input_tensor_by_name(request, "frame")
        if given is not None:
            return np.ascontiguousarray(given.as_numpy())
        from tsss_edge.data.pictures import read_image

        with tempfile.NamedTemporaryFile() as file:  # the one strict reader takes files
            file.write(self.input(request, "jpeg").tobytes())
            file.flush()
            return read_image(Path(file.name))


class PostModel(_Step):
    """`classes` (1,K,h,w) logits or (1,h,w) labels, and `frame_hw` -> `labels` (H,W)."""

    def one(self, request: Any) -> dict[str, Any]:
        from tsss_edge.segment import labels_at

        height, width = (int(v) for v in self.input(request, "frame_hw"))
        outputs = {self.settings["network_output"]: self.input(request, "classes")}
        return {"labels": labels_at(outputs, (height, width), self.preprocess.place((height, width)))}
