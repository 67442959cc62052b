"""A checkpoint in PyTorch or an ONNX file in ONNX Runtime -> a back end: what every engine is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Checkpoint, OnnxModel, TensorSpec
from tsss_edge.backends.base import Closing, Outputs, import_extra, output_specs, require_images
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import reason

if TYPE_CHECKING:
    import torch

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class PyTorchBackend(Closing):
    """FP32 eager mode unless `bf16`. L-Net checkpoints give `objectness` only, the others `logits` too."""

    def __init__(
        self, checkpoint: Checkpoint, *, device: str | None = None, threads: int | None = None, bf16: bool = False
    ) -> None:
        """Make the network of a checkpoint.

        Args:    device: "cpu", "cuda", "cuda:1"; default: the GPU where PyTorch has one, in FP32 proper (no TF32).
                 threads: CPU threads; sets PyTorch's number for the whole process.
        Raises:  ArtifactError: of another architecture, or without a pixel output. UnavailableError: no such device here.
        """
        import torch

        from tsss_edge.models import load_model

        meta = checkpoint.meta
        if meta.stage == "classifier":
            raise ArtifactError(
                f"{checkpoint.path}: a classifier gives no masks; use an L-Net, P-Net or supervised run"
            )
        self.device = _torch_device(device)
        if threads:
            torch.set_num_threads(threads)
        if self.device.type == "cuda":  # a reference rounds like a CPU's: TF32 has 10 bits
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        net = load_model(checkpoint).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net = net
        self._bf16 = bf16
        self.name = f"pytorch {'bf16' if bf16 else 'fp32'} {self.device.type}"
        self.classes = meta.classes
        self.preprocess = meta.preprocess
        self.min_batch = 1
        specs = output_specs(meta.classes, meta.preprocess, head="logits", objectness=net.object_head is not None)
        self.outputs: tuple[TensorSpec, ...] = tuple(
            s for s in specs if s.name != "logits" or net.class_head is not None
        )

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """(N,H,W,3) uint8 RGB -> float32 arrays by output name, new at each call."""
        import torch

        require_images(images, self.preprocess.size_hw)
        kind = self.device.type
        with torch.inference_mode(), torch.autocast(kind, dtype=torch.bfloat16, enabled=self._bf16):
            x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            # permuted NHWC is channels_last already
            heads = self.net(x.permute(0, 3, 1, 2).float().mul_(self.preprocess.scale / 255))
        named = {"logits": heads.logits, "objectness": heads.objectness}
        return {name: t.float().cpu().numpy() for name, t in named.items() if t is not None}

    def close(self) -> None:
        """Free the network's memory."""
        self.net.to("meta")


def _torch_device(name: str | None) -> torch.device:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UnavailableError(f"PyTorch knows no device {name!r}; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            "PyTorch finds no CUDA GPU on this machine; on a CPU use its engine (build-engine --target cpu)"
        )
    return device


class OnnxRuntimeBackend(Closing):
    """FP32 and INT8 as the file says. FP16 files run too, but not with a GPU's FP16 rounding (CPU kernels widen)."""

    def __init__(self, model: OnnxModel, *, threads: int | None = None) -> None:
        """Load the file of a graph into ONNX Runtime's CPU provider.

        Raises: ArtifactError: it is refused, or its input is not as described. UnavailableError: not installed.
        """
        runtime = import_extra("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors; the file is checked by us
        if threads:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self._session = runtime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise ArtifactError(f"{model.path}: ONNX Runtime cannot load it: {reason(error)}") from error
        self.name = f"onnxruntime {model.meta.precision}"
        self.classes = model.meta.classes
        self.preprocess = model.meta.preprocess
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(node) for node in self._session.get_outputs())
        self._input = _spec(self._session.get_inputs()[0])
        size_hw = self.preprocess.size_hw
        if self._input.dtype != "uint8" or self._input.shape[1:] != (*size_hw, 3):
            raise ArtifactError(
                f"{model.path}: its input is {self._input.dtype} {self._input.shape}, its description says uint8 "
                f"(N,{size_hw[0]},{size_hw[1]},3); export it again"
            )
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
