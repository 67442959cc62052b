"""Any segmentation network as ONNX file or PyTorch module -> an `OnnxModel` like those of our own export."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tsss_edge
from tsss_edge.artifacts import Classes, ImportRecord, OnnxMeta, OnnxModel, Preprocess, Struct
from tsss_edge.errors import ArtifactError
from tsss_edge.export.foreign.foreign_graph import Layout
from tsss_edge.export.foreign.normalise import Normalisation
from tsss_edge.export.foreign.proof import ImportCheck
from tsss_edge.files import reason

if TYPE_CHECKING:
    import torch


class ForeignReport(Struct, frozen=True):
    """What an import made: input size, grid of the output, sentences on what was found, and the comparison."""

    out: str
    sha256: str
    size_hw: tuple[int, int]
    grid_hw: tuple[int, int]
    head: str
    found: tuple[str, ...]
    check: ImportCheck

    def summary(self) -> str:
        """For a terminal."""
        check = self.check
        same = f"{check.pictures} pictures: {check.pixels - check.different} of {check.pixels} pixels equal the original file's"
        ties = f"; {check.different} differ where its classes tie" if check.different else ""
        size = f"{self.size_hw[1]}x{self.size_hw[0]}"
        return "\n".join(
            [f"{self.out}: input {size}, {self.head}", *(f"  {line}" for line in self.found), f"  {same}{ties}"]
        )


def import_onnx(
    path: Path,
    out: Path,
    *,
    classes: Classes,
    how: Normalisation | None = None,
    layout: Layout | None = None,
    size_hw: tuple[int, int] | None = None,
    output: str | None = None,
    check_images: Sequence[Path] = (),
) -> ForeignReport:
    """Wrap a segmentation ONNX file: uint8 pictures in, `logits` or `labels` out, checked against the file itself.

    Args:    classes: names by channel. how: what the network was trained on (default: value / 255, RGB).
             layout: of its input (default: by its shape). size_hw: for a graph with free sizes. output: its name, where
             several could be it. check_images: pictures for the comparison; without any, generated ones.
    Raises:  ArtifactError: it cannot be imported, in one sentence; `out` stays as it was. DataError: an unreadable picture.
    """
    from tsss_edge.export.foreign.answers import find_answer, judge_mask, wrap_output
    from tsss_edge.export.foreign.foreign_graph import open_foreign, source_sha256
    from tsss_edge.export.foreign.normalise import require_use, wrap_input
    from tsss_edge.export.foreign.proof import HALF_TIE, TIE, imported_runner, original_runner, require_same_labels
    from tsss_edge.export.onnx_export import generated_pictures
    from tsss_edge.segment import load_picture

    if out.resolve() == path.resolve():
        raise ArtifactError(f"{out}: is the original itself, which is needed to compare with; name another --out")
    how = how or Normalisation()
    opened = open_foreign(path, layout=layout, size_hw=size_hw)
    require_use(opened, how, path)
    spec = Preprocess(size_hw=opened.size_hw)
    pictures = [load_picture(image, spec) for image in check_images] or generated_pictures(spec)
    original = original_runner(path, opened.dtype, opened.layout, how)
    values = original(pictures[0])
    answer = find_answer(values, len(classes), output, path)
    answer = judge_mask(opened.graph, answer, values[answer.name])
    if answer.classes > len(classes):
        raise ArtifactError(f"{path}: gives class id {answer.classes - 1}, but {len(classes)} classes are named")
    graph, folded = wrap_input(opened, how)
    grid, left_out = wrap_output(graph, answer, values[answer.name], opened.size_hw)
    tie = HALF_TIE if opened.half else TIE
    check = require_same_labels(
        path, original, imported_runner(graph), answer, grid, pictures, classes=len(classes), tie=tie
    )
    stride = tuple(side / points for side, points in zip(opened.size_hw, grid, strict=True))
    found = (answer.said, *((f"left out: {left_out}",) if left_out else ()), folded, f"stride {_text(stride)}")
    record = ImportRecord(
        source=path.name, source_sha256=source_sha256(path), mean=how.mean, std=how.std, scale=how.scale, colors=how.colors,
        layout=opened.layout, found=found,
    )  # fmt: skip
    meta = OnnxMeta(
        arch=path.stem,
        classes=classes,
        preprocess=spec,
        head=answer.head,
        objectness=False,
        precision="fp32",
        checkpoint_sha256=record.source_sha256,
        grid_hw=grid,
        imported=record,
        tool=f"tsss-edge {tsss_edge.__version__}",
    )
    model = OnnxModel.save(out, graph, meta)
    return ForeignReport(
        out=str(out),
        sha256=model.sha256,
        size_hw=opened.size_hw,
        grid_hw=grid,
        head=answer.head,
        found=found,
        check=check,
    )


def _text(stride: tuple[float, ...]) -> str:
    down, across = (f"{value:g}" for value in stride)
    return down if down == across else f"{down}x{across}"


def import_module(
    module: torch.nn.Module,
    example: torch.Tensor | tuple[int, int],
    out: Path,
    *,
    classes: Classes,
    how: Normalisation | None = None,
    output: str | None = None,
    check_images: Sequence[Path] = (),
) -> ForeignReport:
    """Export a PyTorch module with torch.onnx and import the file.

    Args:    example: one input, (1,3,H,W) float32, or its (height, width). The others: as `import_onnx`. A dict of outputs,
             as torchvision's networks give, is taken in its order.
    Raises:  ArtifactError: torch cannot export it, or as `import_onnx`.
    """
    import torch

    picture = example if isinstance(example, torch.Tensor) else torch.zeros(1, 3, *example)
    training = [part for part in module.modules() if part.training]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{type(module).__name__}.onnx"
        try:
            torch.onnx.export(_plain(module), (picture,), path, dynamo=True, external_data=False, verbose=False)
        except Exception as error:  # the exporter raises kinds of its own, of onnxscript and of torch
            raise ArtifactError(f"{type(module).__name__}: torch.onnx cannot export it ({reason(error)})") from error
        finally:
            for part in training:  # the module is the caller's
                part.training = True
        return import_onnx(path, out, classes=classes, how=how, layout="nchw", output=output, check_images=check_images)


def _plain(module: torch.nn.Module) -> torch.nn.Module:
    """The module with tensors as outputs: of a dict or of an object like transformers' its tensors, in order."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = module

        def forward(self, picture: torch.Tensor) -> Any:
            found = self.inside(picture)
            if isinstance(found, torch.Tensor):
                return found
            values = found.values() if hasattr(found, "values") else found
            return tuple(value for value in values if isinstance(value, torch.Tensor))

    return Plain().eval()
