"""Foreign graphs: what is found in them, folded where exact, equal to the file they came from; refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreignkit import SIZE_HW, K, Maker, write_net
from onnx import TensorProto, helper, numpy_helper

from tsss_edge.artifacts import Classes, OnnxModel
from tsss_edge.errors import ArtifactError
from tsss_edge.export.foreign import import_module, import_onnx
from tsss_edge.export.foreign.answers import LabelOutput, _plane
from tsss_edge.export.foreign.normalise import Normalisation
from tsss_edge.export.foreign.proof import imported_runner, original_runner, require_same_labels
from tsss_edge.files import sha256_file
from tsss_edge.onnxgraph.qdq import plan

CLASSES = Classes(names=("background", "a", "b", "c", "d"))
TWO = Classes(names=("background", "object"))
IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CAFFE = Normalisation(mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), scale=1.0, colors="bgr")

FOUND: dict[str, tuple[dict[str, Any], Classes, str, tuple[int, int], str]] = {  # how, classes, head, grid, what is said
    "logits at stride 4": ({}, CLASSES, "logits", (16, 24), "5 classes, NCHW, 16x24"),
    "probabilities": ({"end": "softmax"}, CLASSES, "logits", (16, 24), "left out: Softmax"),
    "upsampled by the network": ({"resize": "half_pixel"}, CLASSES, "logits", (16, 24), "left out: the upsampling by 4x4"),
    "upsampled with aligned corners": ({"resize": "align_corners"}, CLASSES, "logits", (64, 96), "5 classes, NCHW, 64x96"),
    "probabilities, upsampled": (
        {"resize": "half_pixel", "end": "softmax"}, CLASSES, "logits", (16, 24), "left out: Softmax, the upsampling by 4x4"
    ),
    "class ids": ({"end": "argmax", "resize": "half_pixel"}, CLASSES, "labels", (64, 96), "class ids, 64x96"),
    "class ids at stride 4": ({"end": "argmax"}, CLASSES, "labels", (16, 24), "class ids, 16x24"),
    "NHWC": ({"layout": "nhwc"}, CLASSES, "logits", (16, 24), "5 classes, NHWC, 16x24"),
    "NHWC probabilities": ({"layout": "nhwc", "end": "softmax"}, CLASSES, "logits", (16, 24), "left out: Softmax"),
    "one channel of logits": ({"classes": 1}, TWO, "logits", (16, 24), "one channel, object or not"),
    "one channel of probabilities": ({"classes": 1, "end": "sigmoid"}, TWO, "logits", (16, 24), "left out: Sigmoid"),
    "beside an embedding": ({"extra": True}, CLASSES, "logits", (16, 24), "output answer"),
    "opset 11": ({"opset": 11}, CLASSES, "logits", (16, 24), "5 classes"),
    "free sizes": ({"shape": ["N", 3, "H", "W"]}, CLASSES, "logits", (16, 24), "5 classes"),
}  # fmt: skip


@pytest.mark.parametrize("how", [Normalisation(), IMAGENET, CAFFE], ids=["0-1", "imagenet", "caffe bgr"])
@pytest.mark.parametrize("kind", FOUND)
def test_is_found_and_equals_the_original(tmp_path: Path, kind: str, how: Normalisation) -> None:
    changes, classes, head, grid, said = FOUND[kind]
    path = write_net(tmp_path / "net.onnx", **changes)
    size = SIZE_HW if "shape" in changes else None
    report = import_onnx(path, tmp_path / "ours.onnx", classes=classes, how=how, size_hw=size)
    assert (report.head, report.grid_hw) == (head, grid)
    assert said in " ".join(report.found)
    assert report.check.different <= report.check.pixels // 100
    model = OnnxModel.load(tmp_path / "ours.onnx")
    assert model.meta.grid_hw == grid
    assert model.meta.imported is not None
    assert model.meta.imported.source == "net.onnx"


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("how", [IMAGENET, CAFFE], ids=["imagenet", "caffe bgr"])
def test_normalisation_is_folded_where_that_is_exact(tmp_path: Path, how: Normalisation, pad: int) -> None:
    """Logits agree to float32's rounding; a Sub node is left only where the first convolution pads."""
    path = write_net(tmp_path / "net.onnx", pad=pad)
    import_onnx(path, tmp_path / "ours.onnx", classes=CLASSES, how=how)
    graph = OnnxModel.load(tmp_path / "ours.onnx")
    kinds = [node.op_type for node in read(graph.path).graph.node]
    assert ("Sub" in kinds) == bool(pad)
    assert not {"Mul", "Div", "Gather"} & set(kinds)
    picture = np.random.default_rng(1).integers(0, 256, (1, *SIZE_HW, 3), np.uint8)
    want = original_runner(path, "float32", "nchw", how)(picture)["answer"]
    got = imported_runner(read(graph.path))(picture)["logits"]
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()  # a few roundings of float32


def read(path: Path) -> Any:
    import onnx

    return onnx.load(path)


def test_normalisation_stays_as_nodes_before_two_readers(tmp_path: Path) -> None:
    make = Maker()
    a, b = make.conv("input", (K, 3)), make.conv("input", (K, 3))
    make.node("Add", a, b, out="answer")
    path = make.save(tmp_path / "net.onnx", [1, 3, *SIZE_HW], {"answer": TensorProto.FLOAT})
    report = import_onnx(path, tmp_path / "ours.onnx", classes=CLASSES, how=CAFFE)
    assert any("stays as nodes" in line for line in report.found)
    assert {"Sub", "Mul", "Gather"} <= {n.op_type for n in read(tmp_path / "ours.onnx").graph.node}


def takes_uint8(path: Path) -> Path:
    make = Maker()
    x = make.node("Transpose", make.node("Cast", "input", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    make.node("Identity", make.conv(x, (K, 3)), out="answer")
    return make.save(path, [1, *SIZE_HW, 3], {"answer": TensorProto.FLOAT}, dtype=TensorProto.UINT8)


def test_a_uint8_input_stays_one(tmp_path: Path) -> None:
    report = import_onnx(takes_uint8(tmp_path / "net.onnx"), tmp_path / "ours.onnx", classes=CLASSES)
    assert any("as they are" in line for line in report.found)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16], ids=["FP16 inside", "FP16 throughout"])
def test_a_network_in_fp16_becomes_fp32(tmp_path: Path, dtype: int) -> None:
    """Weights, a Constant node and casts; none is left between the layers, so that they may become INT8."""
    make = Maker()
    x = make.node("Cast", "input", to=TensorProto.FLOAT16)
    x = make.node("Relu", make.conv(x, (16, 3), stride=2))
    two = make.node("Constant", value=numpy_helper.from_array(np.array(2, np.float16)))
    x = make.node("Relu", make.conv(make.node("Mul", x, two), (16, 16)))
    make.node("Cast", make.conv(x, (K, 16)), out="answer", to=dtype)
    make.weights = [numpy_helper.from_array(numpy_helper.to_array(w).astype(np.float16), w.name) for w in make.weights]
    path = make.save(tmp_path / "net.onnx", [1, 3, *SIZE_HW], {"answer": dtype}, dtype=dtype)
    import_onnx(path, tmp_path / "ours.onnx", classes=CLASSES)
    model = OnnxModel.load(tmp_path / "ours.onnx")
    assert model.meta.precision == "fp32"
    assert "Cast" not in [n.op_type for n in model.graph.graph.node][1:-1]
    assert {t.data_type for t in model.graph.graph.initializer} == {TensorProto.FLOAT}
    assert len(plan(model.graph).weights) == 2


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("opset", "ir", "kind"), [(9, 3, "Upsample"), (10, 4, "Resize")])
def test_old_files_are_upsampled_as_they_were_meant(tmp_path: Path, opset: int, ir: int, kind: str, mode: str) -> None:
    """Opsets below 11 know no half-pixel centres; IR 3 lists the weights among the inputs."""
    make = Maker()
    x = make.conv(make.node("Relu", make.conv("input", (16, 3), stride=2)), (K, 16))
    make.node(kind, x, make.weight(np.array([1, 1, 2, 2], np.float32)), out="answer", mode=mode)
    model = read(make.save(tmp_path / "net.onnx", [1, 3, *SIZE_HW], {"answer": TensorProto.FLOAT}, opset=opset))
    weights = [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in model.graph.initializer]
    model.graph.input.extend(weights)
    model.ir_version = ir
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    report = import_onnx(tmp_path / "net.onnx", tmp_path / "ours.onnx", classes=CLASSES)
    assert report.grid_hw == SIZE_HW and report.check.different == 0


def test_nodes_without_a_name_get_one(tmp_path: Path) -> None:
    model = read(write_net(tmp_path / "net.onnx"))
    for node, name in zip(model.graph.node, ("", "", "", "once", "", ""), strict=True):
        node.name = name
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    import_onnx(tmp_path / "net.onnx", tmp_path / "ours.onnx", classes=CLASSES)
    names = [node.name for node in read(tmp_path / "ours.onnx").graph.node]
    assert "" not in names and len(set(names)) == len(names) and "once" in names
    assert plan(read(tmp_path / "ours.onnx")).weights == ("Conv.t0", "Conv.t2")


def test_weights_beside_the_file_are_part_of_what_it_is(tmp_path: Path) -> None:
    """Two networks whose .onnx files are equal byte by byte, and one that is whole in its file."""
    import onnx

    found = []
    for folder, factor in (("a", 1), ("b", 2)):
        model = read(write_net(tmp_path / folder / "whole.onnx"))
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * factor, weight.name))
        path = tmp_path / folder / "net.onnx"
        onnx.save_model(model, path, save_as_external_data=True, location="net.bin", size_threshold=0)
        import_onnx(path, tmp_path / "ours.onnx", classes=CLASSES)
        found.append(OnnxModel.load(tmp_path / "ours.onnx").meta.checkpoint_sha256)
    assert (tmp_path / "a/net.onnx").read_bytes() == (tmp_path / "b/net.onnx").read_bytes()
    assert found[0] != found[1]
    import_onnx(tmp_path / "a/whole.onnx", tmp_path / "ours.onnx", classes=CLASSES)
    assert OnnxModel.load(tmp_path / "ours.onnx").meta.checkpoint_sha256 == sha256_file(tmp_path / "a/whole.onnx")


def test_other_outputs_that_could_be_it_are_named(tmp_path: Path) -> None:
    make = Maker()
    x = make.node("Relu", make.conv("input", (16, 3), stride=2))
    for name in ("aux", "main"):
        make.node("Identity", make.conv(x, (K, 16)), out=name)
    path = make.save(tmp_path / "net.onnx", [1, 3, *SIZE_HW], dict.fromkeys(("aux", "main"), TensorProto.FLOAT))
    first = import_onnx(path, tmp_path / "ours.onnx", classes=CLASSES).found[0]
    assert first.startswith("output aux:") and first.endswith("also possible: main; choose with --output")
    assert import_onnx(path, tmp_path / "ours.onnx", classes=CLASSES, output="main").found[0].endswith("32x48")


@pytest.mark.parametrize(
    ("end", "middle", "said"),
    [("", 0.0, "one channel, object or not, 32x48"), ("HardSigmoid", 0.5, "made by HardSigmoid, lie between 0 and 1")],
)
def test_a_mask_is_told_by_what_makes_it(tmp_path: Path, end: str, middle: float, said: str) -> None:
    """Logits that happen to lie between 0 and 1 stay logits: a convolution may give any number."""
    make = Maker()
    x = make.node("Sigmoid", make.conv("input", (1, 3), stride=2))
    weight = make.weight(np.full((1, 1, 1, 1), 0.8, np.float32))
    x = make.node("Conv", x, weight, out="" if end else "answer")
    if end:
        make.node(end, x, out="answer", alpha=1.0, beta=0.0)
    path = make.save(tmp_path / "net.onnx", [1, 3, *SIZE_HW], {"answer": TensorProto.FLOAT})
    report = import_onnx(path, tmp_path / "ours.onnx", classes=TWO)
    assert report.found[0].endswith(said)
    picture = np.random.default_rng(1).integers(0, 256, (1, *SIZE_HW, 3), np.uint8)
    want = original_runner(path, "float32", "nchw", Normalisation())(picture)["answer"][0, 0] > middle
    got = imported_runner(read(tmp_path / "ours.onnx"))(picture)["logits"][0].argmax(0)
    np.testing.assert_array_equal(got, want)


def test_scores_that_are_not_finite_hide_nothing() -> None:
    """One score of minus infinity makes no tie of the others; NaN is refused."""
    answer = LabelOutput("y", "scores", "nchw", (2, 2), 2, "")
    scores = np.array([[[1, 1], [1, -np.inf]], [[0, 0], [0, 0]]], np.float32)[None]
    picture = np.zeros((1, 2, 2, 3), np.uint8)

    def compare(original: Any, imported: Any) -> None:
        require_same_labels(
            Path("net.onnx"),
            lambda _: {"y": original},
            lambda _: {"logits": imported},
            answer,
            (2, 2),
            [picture],
            classes=2,
        )

    compare(scores, scores)
    with pytest.raises(ArtifactError, match=r"4 of 4 pixels differ from the original file, 4 of them without a tie"):
        compare(scores, -scores)
    with pytest.raises(ArtifactError, match="output y holds NaN"):
        compare(scores * np.nan, scores)


def test_an_id_without_a_name_is_told_on_whichever_picture_it_shows() -> None:
    answer, ids = LabelOutput("y", "argmax", "nchw", (2, 2), 2, ""), iter([0, 2])
    pictures = [np.zeros((1, 2, 2, 3), np.uint8)] * 2

    def both(_: object) -> dict[str, np.ndarray]:
        return {"y": np.full((1, 2, 2), next(ids))}

    def ours(_: object) -> dict[str, np.ndarray]:
        return {"labels": np.zeros((1, 2, 2), np.uint8)}

    with pytest.raises(ArtifactError, match="gives class id 2 on a picture, but 2 classes are named"):
        require_same_labels(Path("net.onnx"), both, ours, answer, (2, 2), pictures, classes=2)


def test_the_original_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="is the original itself"):
        import_onnx(tmp_path / "net.onnx", tmp_path / "net.onnx", classes=TWO)
    assert (tmp_path / "net.onnx").read_bytes() == b"mine"


def test_names_of_ours_in_the_foreign_graph(tmp_path: Path) -> None:
    """Tensors that are called `image`, `logits` and `labels` inside do no harm."""
    make = Maker()
    x = make.node("Relu", make.conv("input", (8, 3), stride=2), out="logits")
    x = make.node("Relu", make.conv(x, (8, 8)), out="image")
    make.node("Identity", make.conv(x, (K, 8)), out="labels")
    path = make.save(tmp_path / "net.onnx", [1, 3, *SIZE_HW], {"labels": TensorProto.FLOAT})
    assert import_onnx(path, tmp_path / "ours.onnx", classes=CLASSES, how=IMAGENET).head == "logits"


def two_inputs(path: Path) -> Path:
    write_net(path)
    model = read(path)
    model.graph.input.append(model.graph.input[0])
    model.graph.input[1].name = "depth"
    model.graph.node[0].input[0] = "depth"
    model.graph.node.insert(
        0, model.graph.node[0].__class__(op_type="Add", input=["input", "depth"], output=["sum"], name="s")
    )
    model.graph.node[1].input[0] = "sum"
    path.write_bytes(model.SerializeToString())
    return path


def detector(path: Path) -> Path:
    make = Maker()
    boxes = make.node("Reshape", make.conv("input", (4, 3)), make.weight(np.array([1, -1, 4], np.int64)))
    scores = make.node("Reshape", make.conv("input", (1, 3)), make.weight(np.array([1, 1, -1], np.int64)))
    make.node("NonMaxSuppression", boxes, scores, out="found")
    return make.save(path, [1, 3, *SIZE_HW], {"found": TensorProto.INT64})


def quantized(path: Path) -> Path:
    make = Maker()
    scale, zero = make.weight(np.array(0.1, np.float32)), make.weight(np.array(0, np.uint8))
    x = make.node("QuantizeLinear", "input", scale, zero)
    make.node("Identity", make.conv(make.node("DequantizeLinear", x, scale, zero), (K, 3)), out="answer")
    return make.save(path, [1, 3, *SIZE_HW], {"answer": TensorProto.FLOAT})


def vector(path: Path) -> Path:
    make = Maker()
    make.node("Flatten", make.conv("input", (K, 3)), out="answer")
    return make.save(path, [1, 3, *SIZE_HW], {"answer": TensorProto.FLOAT})


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "detector": (detector, {}, "holds NonMaxSuppression, so it finds boxes"),
    "INT8": (quantized, {}, "holds QuantizeLinear, so it is quantized already; give the float file it was made from"),
    "uint8 and a mean": (
        takes_uint8,
        {"how": IMAGENET},
        "takes uint8 pixels as they are, so --mean, --std and --scale",
    ),
    "two inputs": (two_inputs, {}, r"has 2 inputs \(input, depth\)"),
    "a vector": (vector, {}, "no output labels pixels with 5 classes"),
    "other classes": (lambda p: write_net(p, classes=7), {}, "answer 1x7x16x24"),
    "free size": (lambda p: write_net(p, shape=[1, 3, "H", "W"]), {}, "give the network input by --size"),
    "another size": (write_net, {"size_hw": (32, 32)}, "fixed to 64, not 32"),
    "no such output": (write_net, {"output": "nothing"}, "has no output nothing; it has answer"),
    "grey input": (
        lambda p: write_net(p, shape=[1, 1, *SIZE_HW]),
        {},
        "not a readable ONNX file|expected one picture with 3",
    ),
    "batch of 4": (lambda p: write_net(p, shape=[4, 3, *SIZE_HW]), {}, "takes batches of 4"),
    "truncated": (lambda p: p.write_bytes(write_net(p).read_bytes()[:300]), {}, "not a readable ONNX file"),
    "missing": (lambda p: None, {}, "no such ONNX file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    make, options, message = REFUSED[kind]
    make(tmp_path / "net.onnx")
    with pytest.raises(ArtifactError, match=message) as caught:
        import_onnx(tmp_path / "net.onnx", tmp_path / "ours.onnx", classes=CLASSES, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours.onnx").exists()


def test_a_wrong_import_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees a folding that is not exact: a mean in the bias of a convolution that pads."""
    from tsss_edge.export.foreign import normalise

    path = write_net(tmp_path / "net.onnx", pad=1)
    real = normalise.first_conv

    def unpadded(opened: Any) -> Any:
        found = real(opened)
        assert found is not None
        return normalise.FirstConv(node=found.node, padded=False)

    monkeypatch.setattr(normalise, "first_conv", unpadded)
    with pytest.raises(ArtifactError, match="pixels differ from the original file"):
        import_onnx(path, tmp_path / "ours.onnx", classes=CLASSES, how=CAFFE)
    assert not (tmp_path / "ours.onnx").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pytorch_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, K, 3, 2, 1))
    report = import_module(net, SIZE_HW, tmp_path / "ours.onnx", classes=CLASSES, how=IMAGENET)
    assert report.grid_hw == (16, 24)


def test_a_module_stays_in_the_mode_it_was_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frozen parts too, whether the export works or not."""
    torch = pytest.importorskip("torch")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(torch.onnx, "export", fails)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, K, 3), torch.nn.BatchNorm2d(K).eval()).train(True)
    net[1].eval()
    with pytest.raises(ArtifactError, match=r"torch\.onnx cannot export it \(no\)"):
        import_module(net, SIZE_HW, tmp_path / "ours.onnx", classes=CLASSES)
    assert [part.training for part in net.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("shape", "plane"),
    [((1, 5, 7), (5, 7)), ((1, 1, 5, 7), (5, 7)), ((1, 5, 7, 1), (5, 7)), ((1, 2, 5, 7), None), ((2, 5, 7), None)],
)
def test_planes_of_one_channel(shape: tuple[int, ...], plane: tuple[int, int] | None) -> None:
    assert _plane(shape) == plane
