"""A large network on disk as a teacher of the labels: any ONNX file that gives a feature map (ours).

`FeatureNet` replaces L-Net's features in the affinity of self-diffusion. `TextMaps` replaces the classifier's class maps by
likeness of patches to texts, as CLIP-ES does (arXiv 2212.09506): a file whose features share a space with rows of texts.
How the picture is fed (size, mean, deviation) is read from the file's metadata or given. Nothing of such a network comes with us.
"""
# Letters: N batch, C channel, K categories of the set, H, W network input of L-Net, h, w grid, T patches.

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Struct
from tsss_edge.errors import ArtifactError
from tsss_edge.files import edge, parse_json, reason, sha256_file
from tsss_edge.label.diffusion import Floats

MULTIPLE = 32  # pixels: a size that is free in the file and given nowhere is L-Net's, which is such a multiple
LOGIT_SCALE = 100.0  # of cosines, as CLIP ends up with (arXiv 2103.00020)


class Feeding(Struct, frozen=True):
    """How a picture is fed: resized to `size_hw`, then `(value - mean) / deviation` a channel, values 0-255.

    None: as the file's metadata says (`size_hw`, `mean`, `deviation`: JSON lists), else its fixed input size, mean 0 and
    deviation 255.
    """

    size_hw: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    deviation: tuple[float, float, float] | None = None


class FeatureNet:
    """An ONNX file with one picture input, (N,3,H,W) or (N,H,W,3), float or uint8, whose first output is a feature map
    (N,C,h,w) or patches (N,T,C), with or without one class token before them.

    Raises: ArtifactError: no such file, another kind of input, or metadata that cannot be read.
    """

    def __init__(self, path: Path, feeding: Feeding | None = None) -> None:
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; expected an ONNX network that gives a feature map")
        self.path, self.sha256 = path, sha256_file(path)
        self._session = _session(path)
        self._input, *others = self._session.get_inputs()
        if others:
            raise ArtifactError(
                f"{path}: wants {', '.join(o.name for o in others)} beside {self._input.name}; give the part that sees pictures alone"
            )
        shape = self._input.shape
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise ArtifactError(f"{path}: its input {self._input.name} is {shape}; expected (N,3,H,W) or (N,H,W,3)")
        self._first = shape[1] == 3  # channels before rows
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.feeding = self._complete(feeding or Feeding())

    def __call__(self, picture: NDArray[np.uint8]) -> Floats:
        """(H,W,3) uint8 RGB, the whole network input of L-Net -> (C,h,w).

        Raises: ArtifactError: the file gives no feature map.
        """
        fed = self._fed(picture)
        try:
            output = self._session.run([self._session.get_outputs()[0].name], {self._input.name: fed})[0]
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ArtifactError(
                f"{self.path}: does not take a picture of {fed.shape} (its input is {self._input.shape}); give --size ({reason(error)})"
            ) from error
        return self._grid(np.asarray(output, np.float32))

    def _complete(self, given: Feeding) -> Feeding:
        rows, columns = self._input.shape[2:] if self._first else self._input.shape[1:3]
        fixed = (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None
        known = {name: _from_json(self.path, self.metadata, name) for name in ("size_hw", "mean", "deviation")}
        return Feeding(
            size_hw=given.size_hw or known["size_hw"] or fixed,
            mean=given.mean or known["mean"] or (0.0, 0.0, 0.0),
            deviation=given.deviation or known["deviation"] or (255.0, 255.0, 255.0),
        )

    def _fed(self, picture: NDArray[np.uint8]) -> NDArray[Any]:
        height, width = self.feeding.size_hw or picture.shape[:2]
        view = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        if self._input.type != "tensor(uint8)":
            kind = np.float16 if self._input.type == "tensor(float16)" else np.float32
            mean, deviation = (np.array(v, np.float32) for v in (self.feeding.mean, self.feeding.deviation))
            view = ((view.astype(np.float32) - mean) / deviation).astype(kind)
        return np.ascontiguousarray(view.transpose(2, 0, 1) if self._first else view)[None]

    def _grid(self, output: Floats) -> Floats:
        if output.ndim == 4:
            return np.asarray(output[0])
        if output.ndim == 3:
            patches = output[0]
            for first in (0, 1):  # without and with a class token
                side = math.isqrt(len(patches) - first)
                if side * side == len(patches) - first:
                    return np.ascontiguousarray(patches[first:].T).reshape(-1, side, side)
        raise ArtifactError(
            f"{self.path}: its first output is {output.shape}; expected a map (N,C,h,w) or square patches (N,T,C)"
        )


class TextMaps:
    """Patches of a `FeatureNet` against one text row a category: `logit_scale` times their cosine.

    Args:   texts: .npy file, (K,C), rows by class id; or without the background's row. The network's metadata may give
            `logit_scale` (else 100).
    Raises: ArtifactError: rows that do not fit the classes, or not finite numbers.
    """

    def __init__(self, net: FeatureNet, texts: Path, classes: Classes) -> None:
        self.net, self.sha256 = net, sha256_file(texts) if texts.is_file() else ""
        rows = _read_rows(texts)
        missing = len(classes) - len(rows)
        if missing not in (0, len(classes) - len(classes.objects)):
            raise ArtifactError(
                f"{texts}: {len(rows)} rows; expected one for each of {len(classes.objects)} categories, by class id"
            )
        rows = np.concatenate([np.zeros((missing, rows.shape[1]), np.float32), rows])
        self._rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
        try:
            self._scale = float(net.metadata.get("logit_scale", LOGIT_SCALE))
        except ValueError as error:
            raise ArtifactError(f"{net.path}: its metadata logit_scale is no number ({error})") from error
        self._texts = texts

    def __call__(self, picture: NDArray[np.uint8]) -> Floats:
        """(H,W,3) uint8 RGB -> (K,h,w) logits. Raises: ArtifactError: features of another width than the texts."""
        features = self.net(picture)
        if len(features) != self._rows.shape[1]:
            raise ArtifactError(
                f"{self._texts}: rows of {self._rows.shape[1]}, but {self.net.path} gives {len(features)} channels; "
                "take texts of the same model"
            )
        unit = features / np.maximum(np.linalg.norm(features, axis=0), 1e-6)
        maps: Floats = self._scale * np.einsum("kc,chw->khw", self._rows, unit)
        return maps


def resized_map(grid: Floats, size_hw: tuple[int, int]) -> Floats:
    """(C,h,w) -> (C,*size_hw), bilinear with half-pixel centres."""
    if grid.shape[1:] == size_hw:
        return grid
    return np.stack([cv2.resize(channel, size_hw[::-1], interpolation=cv2.INTER_LINEAR) for channel in grid])


def _session(path: Path) -> Any:
    import onnx

    from tsss_edge.onnxgraph.sessions import open_session

    try:
        return open_session(onnx.load(path))
    except Exception as error:  # what onnx raises for a file that is none shares no base class
        raise ArtifactError(f"{path}: not an ONNX network that can be run ({reason(error)})") from error


def _from_json(path: Path, metadata: dict[str, str], name: str) -> Any:
    kinds: dict[str, Any] = {"size_hw": tuple[int, int]}
    if name not in metadata:
        return None
    try:
        return parse_json(metadata[name], kinds.get(name, tuple[float, float, float]))
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{path}: its metadata {name} is {metadata[name]!r}: {error}") from error


def _read_rows(path: Path) -> Floats:
    with edge(path, "NumPy file of text rows", "write it with numpy.save"):
        rows = np.load(path, allow_pickle=False)
    if not isinstance(rows, np.ndarray):
        raise ArtifactError(f"{path}: holds several arrays; expected one, written with numpy.save")
    if rows.ndim != 2 or rows.dtype.kind != "f" or not np.isfinite(rows).all():
        raise ArtifactError(f"{path}: {rows.dtype} {rows.shape}; expected finite numbers, one row a category")
    return np.asarray(rows, np.float32)
