"""uint8 pictures, (1,H,W,3) RGB -> what a foreign graph's input wants: nodes in front, folded into its first convolution.

`(value * scale - mean) / std` for each channel becomes `(value - shift) * factor`. The factor and the order of colours go
into the weights of the first convolution; the shift goes into its bias where it has no padding, since a padded zero stands
for a pixel equal to the mean. Else a Sub node stays, and the result is the same as before but for float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Struct
from tsss_edge.errors import ArtifactError
from tsss_edge.export.foreign.foreign_graph import Opened, rename_tensor

if TYPE_CHECKING:
    from onnx import ModelProto

Colors = Literal["rgb", "bgr"]
Channel = tuple[float, float, float]
IMAGE = "image"  # name of our input


class Normalisation(Struct, frozen=True):
    """What the foreign network was trained on: `(value * scale - mean) / std`, channels in the order of `colors`."""

    mean: Channel = (0.0, 0.0, 0.0)
    std: Channel = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    colors: Colors = "rgb"

    def __post_init__(self) -> None:
        if not all(np.isfinite((*self.mean, *self.std, self.scale))) or min(map(abs, self.std)) == 0 or self.scale <= 0:
            raise ValueError("mean, std and scale: expected finite numbers, std not 0, scale above 0")

    @property
    def factor(self) -> NDArray[np.float64]:
        """(3,) by channel of the network."""
        return np.float64(self.scale) / np.array(self.std)

    @property
    def shift(self) -> NDArray[np.float64]:
        """(3,) in grey values, by channel of the network."""
        return np.array(self.mean) / self.scale

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(...,3) uint8 RGB -> (...,3) float32, in the open: what the check compares the folded graph with."""
        channels = picture if self.colors == "rgb" else picture[..., ::-1]
        return ((channels.astype(np.float64) * self.scale - self.mean) / self.std).astype(np.float32)


@dataclass(frozen=True)
class FirstConv:
    """The convolution that alone reads the input, through Transposes at most."""

    node: Any
    padded: bool


def require_use(opened: Opened, how: Normalisation, path: Path) -> None:
    """Raise ArtifactError where a mean, std or scale was given that nothing would use: the network takes uint8 pixels."""
    given, usual = ((n.mean, n.std, n.scale) for n in (how, Normalisation()))
    if opened.dtype == "uint8" and given != usual:
        raise ArtifactError(
            f"{path}: its input takes uint8 pixels as they are, so --mean, --std and --scale would do nothing; leave them out"
        )


def wrap_input(opened: Opened, how: Normalisation) -> tuple[ModelProto, str]:
    """The graph with input `image`, uint8 (1,H,W,3) RGB, and one sentence on what was folded. Changes `opened.graph`."""
    from onnx import TensorProto, helper

    graph = opened.graph.graph
    nodes: list[Any] = []
    here, said = IMAGE, "the network takes uint8 pixels as they are"
    if opened.dtype != "uint8":
        here = _add(nodes, "Cast", [here], to=TensorProto.FLOAT)
        here, said = _normalise(opened, how, nodes, here)
    elif how.colors == "bgr":
        here = _reverse(opened, nodes, here)
    if opened.layout == "nchw":
        here = _add(nodes, "Transpose", [here], perm=[0, 3, 1, 2])
    if opened.input != IMAGE:
        rename_tensor(graph, IMAGE, "tsss_was_image")  # another tensor of the foreign graph may bear our name
    rename_input(graph, opened.input, here)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [1, *opened.size_hw, 3]))
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    return opened.graph, said


def _normalise(opened: Opened, how: Normalisation, nodes: list[Any], here: str) -> tuple[str, str]:
    """Nodes on float pixels, NHWC, and what was said of them."""
    if (first := first_conv(opened)) is None:
        if how.colors == "bgr":
            here = _reverse(opened, nodes, here)
        if np.any(how.shift):
            here = _add(nodes, "Sub", [here, _constant(opened, "shift", how.shift)])
        here = _add(nodes, "Mul", [here, _constant(opened, "factor", how.factor)])
        return here, "the picture does not go to one plain convolution alone, so normalisation stays as nodes"
    shifted = bool(np.any(how.shift))
    if shifted and first.padded:  # in the order of our picture: RGB
        here = _add(
            nodes, "Sub", [here, _constant(opened, "shift", how.shift[::-1] if how.colors == "bgr" else how.shift)]
        )
    _fold(opened, first, how, bias=shifted and not first.padded)
    if shifted and first.padded:
        return here, "factor folded into the first convolution; the mean stays a node, because that convolution pads"
    return here, "normalisation folded into the first convolution"


def first_conv(opened: Opened) -> FirstConv | None:
    """The convolution that everything starts with, None where the input goes elsewhere or its weights are shared."""
    graph = opened.graph.graph
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    tensor = opened.input
    while len(readers := users.get(tensor, [])) == 1 and readers[0].op_type in ("Transpose", "Identity"):
        tensor = readers[0].output[0]
    weights = {t.name for t in graph.initializer}
    conv = readers[0] if len(readers) == 1 else None
    if conv is None or conv.op_type != "Conv" or conv.input[1] not in weights or len(users[conv.input[1]]) > 1:
        return None
    attributes = {a.name: a for a in conv.attribute}
    if "group" in attributes and attributes["group"].i != 1:
        return None
    auto = attributes["auto_pad"].s if "auto_pad" in attributes else b"NOTSET"
    padded = auto not in (b"NOTSET", b"VALID") or ("pads" in attributes and any(attributes["pads"].ints))
    if len(conv.input) > 2 and (conv.input[2] not in weights or len(users[conv.input[2]]) > 1):
        return None
    return FirstConv(node=conv, padded=padded)


def _fold(opened: Opened, first: FirstConv, how: Normalisation, *, bias: bool) -> None:
    """Weights times factor, in the order of RGB; with `bias` the shift too."""
    from onnx import numpy_helper

    graph = opened.graph.graph
    tensors = {t.name: t for t in graph.initializer}
    name = first.node.input[1]
    weights = numpy_helper.to_array(tensors[name]).astype(np.float64) * how.factor[None, :, None, None]
    if bias:
        offset = -(weights * how.shift[None, :, None, None]).sum((1, 2, 3))
        if len(first.node.input) > 2:
            old = tensors[first.node.input[2]]
            old.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(old) + offset).astype(np.float32), old.name))
        else:
            first.node.input.append(_constant(opened, "bias", offset))
    if how.colors == "bgr":
        weights = weights[:, ::-1]
    tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights, np.float32), name))


def _reverse(opened: Opened, nodes: list[Any], here: str) -> str:
    from onnx import numpy_helper

    order = numpy_helper.from_array(np.array([2, 1, 0], np.int64), "tsss_colors")
    opened.graph.graph.initializer.append(order)
    return _add(nodes, "Gather", [here, order.name], axis=3)


def _constant(opened: Opened, name: str, values: NDArray[np.float64]) -> str:
    from onnx import numpy_helper

    tensor = numpy_helper.from_array(values.astype(np.float32), f"tsss_{name}")
    opened.graph.graph.initializer.append(tensor)
    return str(tensor.name)


def _add(nodes: list[Any], kind: str, inputs: Sequence[str], **attributes: Any) -> str:
    from onnx import helper

    name = f"tsss_{kind.lower()}_{len(nodes)}"
    nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
    return name


def rename_input(graph: Any, old: str, new: str) -> None:
    """Let every reader of a tensor read another one, inside the branches of If and Loop too."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename_input(attribute.g, old, new)
