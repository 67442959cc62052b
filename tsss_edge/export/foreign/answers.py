"""Outputs of a foreign graph -> which one labels pixels, in what form, and nodes that make it our `logits` or `labels`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Head
from tsss_edge.errors import ArtifactError
from tsss_edge.export.foreign.foreign_graph import FLOATS, Layout, rename_tensor

if TYPE_CHECKING:
    from onnx import ModelProto

Form = Literal["scores", "mask", "argmax"]  # a channel a class; one channel, object or not; class ids
Values = dict[str, NDArray[Any]]
MONOTONE = ("Softmax", "LogSoftmax", "Sigmoid")  # leave the order of classes as it is
MOVES = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Resize")  # probabilities stay such
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # may give any number


@dataclass(frozen=True)
class LabelOutput:
    """The output that labels pixels. `grid_hw`: its height and width; `said`: one sentence for the user.

    middle: of a mask, the value above which a pixel is object: 0 for logits, 0.5 for probabilities.
    """

    name: str
    form: Form
    layout: Layout
    grid_hw: tuple[int, int]
    classes: int
    said: str
    middle: float = 0.0

    @property
    def head(self) -> Head:
        """Our name for it."""
        return "labels" if self.form == "argmax" else "logits"


def find_answer(values: Values, classes: int, wanted: str | None, path: Path) -> LabelOutput:
    """Choose among the outputs of one run: the first that can be it; what is said names the others.

    Args:    values: outputs by name. classes: how many names the user gave. wanted: `--output`.
    Raises:  ArtifactError: none of them can be it, in one sentence.
    """
    if wanted is not None and wanted not in values:
        raise ArtifactError(f"{path}: has no output {wanted}; it has {', '.join(values)}")
    candidates = {wanted: values[wanted]} if wanted is not None else values
    found = [a for name, value in candidates.items() if (a := _answer(name, value, classes)) is not None]
    if not found:
        shapes = ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in values.items())
        raise ArtifactError(
            f"{path}: no output labels pixels with {classes} classes; it gives {shapes}; expected 1x{classes}xhxw, 1xhxwx{classes}, "
            "class ids 1xhxw, or one channel for 2 classes (boxes, embeddings and queries are not taken)"
        )
    if others := [answer.name for answer in found[1:]]:
        return replace(found[0], said=f"{found[0].said}; also possible: {', '.join(others)}; choose with --output")
    return found[0]


def judge_mask(graph: ModelProto, answer: LabelOutput, value: NDArray[Any]) -> LabelOutput:
    """Tell a mask of probabilities from one of logits, by the node that makes it; where that tells nothing, by its values.

    Args:    graph: before `wrap_output`. value: what the answer gave in one run. Other answers are returned as they are.
    """
    if answer.form != "mask":
        return answer
    tail = _Tail(graph)
    node = tail.made.get(tail.back_over(answer.name, MOVES, lambda _: True)[0])
    kind = node.op_type if node is not None else "the input"
    if kind == "Sigmoid":
        return replace(answer, middle=0.5)
    if kind in WEIGHTED or float(value.min()) < 0 or float(value.max()) > 1:
        return answer
    guess = f"taken for probabilities, object above 0.5, because its values, made by {kind}, lie between 0 and 1"
    return replace(answer, middle=0.5, said=f"{answer.said}; {guess}")


def _answer(name: str, value: NDArray[Any], classes: int) -> LabelOutput | None:
    shape = value.shape
    if np.issubdtype(value.dtype, np.integer) or value.dtype == bool:
        grid = _plane(shape)
        if grid is None or min(grid) < 2:
            return None
        high = int(value.max()) if value.size else 0
        return LabelOutput(
            name, "argmax", "nchw", grid, max(classes, high + 1), f"output {name}: class ids, {grid[0]}x{grid[1]}"
        )
    if len(shape) != 4 or shape[0] != 1 or value.dtype.name not in FLOATS:
        return None
    for layout, channels, grid in (("nchw", shape[1], shape[2:]), ("nhwc", shape[3], shape[1:3])):
        if channels == classes and min(grid) > 1:
            text = f"output {name}: {classes} classes, {layout.upper()}, {grid[0]}x{grid[1]}"
            return LabelOutput(name, "scores", layout, (grid[0], grid[1]), classes, text)  # type: ignore[arg-type]
    plane = _plane(shape)
    if classes == 2 and plane is not None and min(plane) > 1:
        text = f"output {name}: one channel, object or not, {plane[0]}x{plane[1]}"
        return LabelOutput(name, "mask", "nchw" if shape[1] == 1 else "nhwc", plane, 2, text)
    return None


def _plane(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width of 1xhxw, 1x1xhxw or 1xhxwx1."""
    if len(shape) == 3 and shape[0] == 1:
        return shape[1], shape[2]
    if len(shape) == 4 and shape[0] == 1 and shape[1] == 1:
        return shape[2], shape[3]
    if len(shape) == 4 and shape[0] == 1 and shape[3] == 1:
        return shape[1], shape[2]
    return None


def wrap_output(
    graph: ModelProto, answer: LabelOutput, value: NDArray[Any], size_hw: tuple[int, int]
) -> tuple[tuple[int, int], str]:
    """Make the answer the graph's only output, `logits` (1,K,h,w) float32 or `labels` (1,h,w) uint8. Changes `graph`.

    A Softmax, LogSoftmax or Sigmoid at the end is left out, because it does not change which class is largest; so is an
    upsampling to the network's size that our own kernel does as well (bilinear, half-pixel centres).
    Args:    value: what the answer gave in one run, for its type and dimensions.
    Returns: (height, width) of the new output, and what was left out (empty: nothing).
    """
    tail = _Tail(graph)
    here, cut = answer.name, []
    if answer.form == "argmax":
        here = _labels(tail, here, value)
        grid = answer.grid_hw
    else:
        here, dropped = tail.back_over(here, MONOTONE, lambda node: _along_classes(node, answer))
        cut += dropped
        here, grid, upsampled = _without_upsampling(tail, here, answer, size_hw)
        cut += upsampled
        here = _logits(tail, here, answer, value, sigmoid_cut="Sigmoid" in cut)
    tail.finish(here, answer, grid)
    return grid, ", ".join(cut)


class _Tail:
    """The end of a graph: looks back from an output, and adds nodes."""

    def __init__(self, graph: ModelProto) -> None:
        self.model = graph
        self.made = {name: node for node in graph.graph.node for name in node.output}
        self.weights = {t.name: t for t in graph.graph.initializer}
        self.count = 0

    def back_over(self, tensor: str, kinds: tuple[str, ...], fits: Any) -> tuple[str, list[str]]:
        """The tensor before the last nodes of these kinds; Identity, Cast to float and Transposes stay where they are."""
        dropped: list[str] = []
        while (node := self.made.get(tensor)) is not None and (
            node.op_type == "Identity" or (node.op_type in kinds and fits(node))
        ):
            if node.op_type != "Identity":
                dropped.append(node.op_type)
            tensor = node.input[0]
        return tensor, dropped

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        self.count += 1
        name = f"tsss_out_{kind.lower()}_{self.count}"
        self.model.graph.node.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def tensor(self, name: str, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.model.graph.initializer.append(numpy_helper.from_array(values, f"tsss_{name}"))
        return f"tsss_{name}"

    def finish(self, tensor: str, answer: LabelOutput, grid: tuple[int, int]) -> None:
        """`tensor` becomes the one output under our name; nodes and weights that nobody reads any more go."""
        from onnx import TensorProto, helper

        graph = self.model.graph
        name = answer.head
        if tensor != name:
            rename_tensor(graph, name, f"tsss_was_{name}")  # another tensor of the foreign graph may bear it
            rename_tensor(graph, tensor, name)
        kind, shape = (
            (TensorProto.UINT8, [1, *grid]) if name == "labels" else (TensorProto.FLOAT, [1, answer.classes, *grid])
        )
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
        prune(self.model)


def _along_classes(node: Any, answer: LabelOutput) -> bool:
    if node.op_type == "Sigmoid":
        return True
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1) % 4
    return axis == (1 if answer.layout == "nchw" else 3)


def _without_upsampling(
    tail: _Tail, tensor: str, answer: LabelOutput, size_hw: tuple[int, int]
) -> tuple[str, tuple[int, int], list[str]]:
    """The tensor before a last bilinear Resize to the network's size, where our kernel gives the same values."""
    node = tail.made.get(tensor)
    if node is None or node.op_type != "Resize" or answer.layout != "nchw" or answer.grid_hw != size_hw:
        return tensor, answer.grid_hw, []
    options = {a.name: a for a in node.attribute}
    mode = options["mode"].s if "mode" in options else b"nearest"
    centres = (
        options["coordinate_transformation_mode"].s if "coordinate_transformation_mode" in options else b"half_pixel"
    )
    grid = _grid_before(tail, node, answer)
    plain = mode == b"linear" and centres in (b"half_pixel", b"pytorch_half_pixel") and "axes" not in options
    if not plain or grid is None or grid[0] >= size_hw[0] or grid[1] >= size_hw[1] or min(grid) < 2:
        return tensor, answer.grid_hw, []
    factors = size_hw[0] / grid[0], size_hw[1] / grid[1]
    return node.input[0], grid, [f"the upsampling by {factors[0]:g}x{factors[1]:g}"]


def _grid_before(tail: _Tail, node: Any, answer: LabelOutput) -> tuple[int, int] | None:
    """Height and width of what a Resize reads, by shape inference."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(tail.model)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    dims = shapes.get(node.input[0], [])
    return (dims[2], dims[3]) if len(dims) == 4 and all(d > 0 for d in dims[1:]) else None


def _labels(tail: _Tail, tensor: str, value: NDArray[Any]) -> str:
    """Class ids of any integer type -> (1,h,w) uint8, through float: TensorRT casts no int64 to uint8."""
    from onnx import TensorProto

    if value.dtype != np.float32:
        tensor = tail.add("Cast", [tensor], to=TensorProto.FLOAT)
    if value.ndim == 4:
        axis = tail.tensor("axis", np.array([1 if value.shape[1] == 1 else 3], np.int64))
        tensor = tail.add("Squeeze", [tensor, axis])
    return tail.add("Cast", [tensor], to=TensorProto.UINT8)


def _logits(tail: _Tail, tensor: str, answer: LabelOutput, value: NDArray[Any], *, sigmoid_cut: bool) -> str:
    """Scores of any layout -> (1,K,h,w) float32; one channel z becomes the two classes (0, z)."""
    if value.ndim == 3:
        tensor = tail.add("Unsqueeze", [tensor, tail.tensor("axis", np.array([1], np.int64))])
    elif answer.layout == "nhwc":
        tensor = tail.add("Transpose", [tensor], perm=[0, 3, 1, 2])
    if answer.form != "mask":
        return tensor
    if answer.middle and not sigmoid_cut:
        tensor = tail.add("Sub", [tensor, tail.tensor("half", np.array(answer.middle, np.float32))])
    nothing = tail.add("Mul", [tensor, tail.tensor("zero", np.array(0.0, np.float32))])
    return tail.add("Concat", [nothing, tensor], axis=1)


def prune(model: ModelProto) -> None:
    """Delete nodes, weights and shapes that no output needs. Changes `model`."""
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    needed, stack = set[str](), [value.name for value in graph.output]
    while stack:
        name = stack.pop()
        if name in needed or not name:
            continue
        needed.add(name)
        if name in made:
            stack.extend(_reads(made[name]))
    kept = [node for node in graph.node if needed.intersection(node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    weights = [t for t in graph.initializer if t.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.value_info[:]


def _reads(node: Any) -> list[str]:
    """Inputs of a node, and what the graphs inside it read."""
    inner = [name for a in node.attribute if a.HasField("g") for n in a.g.node for name in _reads(n)]
    return [*node.input, *inner]
