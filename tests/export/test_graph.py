"""Export: right answers, the same bytes, and nothing on disk when something is wrong."""

from __future__ import annotations

from pathlib import Path

import netkit
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from tsss_edge.artifacts import Checkpoint, Head, OnnxModel, Precision
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.export import onnx_export as graph_module
from tsss_edge.export.emit import emit
from tsss_edge.export.onnx_export import ExportCheck, compare, export_onnx, generated_pictures, require_agreement
from tsss_edge.models import load_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return netkit.checkpoint(tmp_path_factory.mktemp("run") / "best.pt")


@pytest.fixture(scope="module")
def picture_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        Image.fromarray(netkit.picture(i, (80, 112))).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


@pytest.mark.parametrize("arch", ["edge-s", "edge-m", "lite0"])
def test_onnx_is_the_two_networks(tmp_path: Path, arch: str) -> None:
    """Class head and objectness head of one file against PyTorch: 1e-5 of the largest value (measured 2e-6)."""
    checkpoint = netkit.checkpoint(tmp_path / "best.pt", arch)
    model = export_onnx(checkpoint.path, tmp_path / "out.onnx", head="both", objectness=True, batch=2)
    images = np.stack([netkit.picture(i) for i in (1, 2)])
    got = run(model.path, images)
    with torch.no_grad():
        want = load_model(checkpoint)(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    for name, tensor in (("logits", want.logits), ("objectness", want.objectness)):
        expected = tensor.numpy()
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    wide = torch.nn.functional.interpolate(want.logits, scale_factor=8, mode="bilinear").argmax(1).numpy()
    assert got["labels"].dtype == np.uint8 and (got["labels"] == wide).mean() > 0.9999


@pytest.mark.parametrize(
    ("head", "objectness", "names"),
    [
        ("logits", False, ["logits"]),
        ("labels", False, ["labels"]),
        ("both", True, ["logits", "labels", "objectness"]),
        ("labels", True, ["labels", "objectness"]),
    ],
)
def test_heads(tmp_path: Path, checkpoint: Checkpoint, head: Head, objectness: bool, names: list[str]) -> None:
    model = export_onnx(checkpoint.path, tmp_path / "out.onnx", head=head, objectness=objectness)
    got = run(model.path, netkit.picture(5)[None])
    assert list(got) == names
    shapes = {"logits": (1, 5, 8, 12), "labels": (1, 64, 96), "objectness": (1, 1, 8, 12)}
    assert {n: a.shape for n, a in got.items()} == {n: shapes[n] for n in names}


def test_free_batch_gives_what_single_pictures_give(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model = export_onnx(checkpoint.path, tmp_path / "out.onnx", batch=0)
    images = np.stack([netkit.picture(i) for i in range(3)])
    together = run(model.path, images)["logits"]
    alone = np.concatenate([run(model.path, image[None])["logits"] for image in images])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)  # other blocking of the same sums


def test_same_checkpoint_same_bytes(tmp_path: Path, checkpoint: Checkpoint) -> None:
    first = export_onnx(checkpoint.path, tmp_path / "a.onnx", head="both", objectness=True)
    second = export_onnx(checkpoint.path, tmp_path / "b.onnx", head="both", objectness=True)
    assert first.path.read_bytes() == second.path.read_bytes()


def test_description_opset_and_names(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model = OnnxModel.load(export_onnx(checkpoint.path, tmp_path / "out.onnx").path)
    assert model.meta.checkpoint_sha256 == checkpoint.sha256 and model.meta.preprocess == netkit.SPEC
    assert (model.meta.precision, model.meta.head, model.meta.arch) == ("fp32", "logits", "edge-s")
    graph = onnx.load(model.path)
    assert graph.opset_import[0].version == 17 and len(graph.opset_import) == 1
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds[:3] == ["Cast", "Transpose", "Conv"]  # TensorRT refuses a transpose of uint8
    assert set(kinds) == {"Cast", "Transpose", "Conv", "Relu", "Add", "Resize"}
    assert next(n.name for n in graph.graph.node if n.op_type == "Conv") == "encoder.stem"


def test_checked_on_pictures(tmp_path: Path, checkpoint: Checkpoint, picture_files: list[Path]) -> None:
    export_onnx(checkpoint.path, tmp_path / "out.onnx", check_images=picture_files)
    assert (tmp_path / "out.onnx").is_file()


def test_disagreement_leaves_nothing(
    tmp_path: Path, checkpoint: Checkpoint, picture_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is built of other weights than the network it is compared with."""
    original = graph_module.build_graph

    def broken(fused, *args):
        fused.net.class_head.bias.data[1] += 0.5
        return original(fused, *args)

    monkeypatch.setattr(graph_module, "build_graph", broken)
    with pytest.raises(ArtifactError, match="ONNX and PyTorch disagree on 2 pictures"):
        export_onnx(checkpoint.path, tmp_path / "out" / "x.onnx", check_images=picture_files)
    assert not (tmp_path / "out").exists()


def test_nan_never_agrees() -> None:
    check = ExportCheck(images=1, agreement=1.0, logit_error=float("inf"), logit_range=3.0, objectness_error=0.0)
    with pytest.raises(ArtifactError, match="disagree"):
        require_agreement(Path("x.onnx"), check, "fp32")


def test_labels_alone_are_compared(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model = export_onnx(checkpoint.path, tmp_path / "out.onnx", head="labels")
    graph, net = onnx.load(model.path), load_model(checkpoint)
    assert compare(net, graph, netkit.SPEC, generated_pictures(netkit.SPEC)).agreement > 0.9999
    net.class_head.bias.data[0] += 100
    assert compare(net, graph, netkit.SPEC, generated_pictures(netkit.SPEC)).agreement < 0.9


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_labels_become_bytes_from_float_or_half(tmp_path: Path, checkpoint: Checkpoint, precision: Precision) -> None:
    """TensorRT's own headers allow uint8 from nothing else, whatever one version's parser takes."""
    path = export_onnx(checkpoint.path, tmp_path / "out.onnx", head="labels", precision=precision).path
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    (last,) = [node for node in graph.node if node.output[0] == "labels"]
    assert last.op_type == "Cast" and kinds[last.input[0]] in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def test_bad_check_picture(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.jpg: not a readable picture"):
        export_onnx(checkpoint.path, tmp_path / "out.onnx", check_images=[tmp_path / "bad.jpg"])
    assert not (tmp_path / "out.onnx").exists()


def test_checkpoints_without_class_maps(tmp_path: Path) -> None:
    lnet = netkit.checkpoint(tmp_path / "lnet.pt", stage="lnet")
    with pytest.raises(ArtifactError, match="no class output"):
        export_onnx(lnet.path, tmp_path / "out.onnx")
    other = netkit.checkpoint(tmp_path / "classifier.pt", stage="classifier")
    with pytest.raises(ArtifactError, match="a classifier gives no masks"):
        export_onnx(other.path, tmp_path / "out.onnx")
    with pytest.raises(ArtifactError, match="export writes fp32 or fp16, not int8"):
        export_onnx(lnet.path, tmp_path / "out.onnx", precision="int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classifier.pt", "lnet.pt"]


def test_layer_without_translation_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.GELU()

        def forward(self, x):
            return {"y": self.act(x)}

    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2])
    with pytest.raises(ArtifactError, match=r"layer act \(GELU\) has no ONNX translation"):
        emit(Odd(), {"x": info}, {"y": info})


def test_pool_concat_and_dropout_are_translated() -> None:
    """What the networks of the paper need; against PyTorch."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.drop = nn.MaxPool2d(3, 1, 1), nn.Dropout2d()
            self.conv = nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False)

        def forward(self, x):
            return {"y": torch.cat([self.drop(self.pool(x)), self.conv(x)], 1)}

    module = Mixed().eval()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 8, 9)).astype(np.float32))
    info = onnx.helper.make_tensor_value_info
    model = emit(
        module,
        {"x": info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 9])},
        {"y": info("y", onnx.TensorProto.FLOAT, [1, 7, 8, 9])},
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = module(x)["y"].numpy()
    np.testing.assert_allclose(session.run(["y"], {"x": x.numpy()})[0], expected, rtol=0, atol=1e-6)
