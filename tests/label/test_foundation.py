"""Large networks as teachers of the labels: how they are fed, what is read of them, and that they see what ours see."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from trainkit import STRONG, write_squares

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Preprocess
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.export.emit import emit_floats
from tsss_edge.label.annotate import LabelConfig, seen_by
from tsss_edge.label.edges import EdgeFit
from tsss_edge.label.foundation import FeatureNet, Feeding, TextMaps, resized_map
from tsss_edge.label.write import Teachers, write_labels
from tsss_edge.models import Classifier, SegNet, build_model

CLASSES = Classes(names=("background", "red", "green", "blue"))
SPEC = Preprocess(size_hw=(64, 64))
ONE_LOOK = LabelConfig(scales=(1.0,), flip=False, edges=EdgeFit(radius=0), background_below=0.4, object_above=0.4)


class Features(nn.Module):
    """The features of a network of ours, as a network of its own."""

    def __init__(self, net: SegNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.net.features(x)]


def write_onnx(path: Path, nodes: list[onnx.NodeProto], shape: list[object], kind: int, **metadata: str) -> Path:
    """A graph from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def colors(path: Path, **metadata: str) -> Path:
    """The picture itself is the feature map: what the network was fed."""
    return write_onnx(
        path, [helper.make_node("Identity", ["x"], ["y"])], ["N", 3, "H", "W"], TensorProto.FLOAT, **metadata
    )


PICTURE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)


def test_it_is_fed_as_the_metadata_or_the_caller_says(tmp_path: Path) -> None:
    said = {"size_hw": "[64, 96]", "mean": "[1, 2, 3]", "deviation": "[2, 4, 8]"}
    net = FeatureNet(colors(tmp_path / "f.onnx", **said))
    wanted = (PICTURE - np.float32([1, 2, 3])) / np.float32([2, 4, 8])
    np.testing.assert_allclose(net(PICTURE), wanted.transpose(2, 0, 1), rtol=1e-6)
    given = FeatureNet(net.path, Feeding(size_hw=(32, 32), mean=(0, 0, 0), deviation=(1, 1, 1)))
    assert given(PICTURE).shape == (3, 32, 32) and given(PICTURE).max() > 200
    plain = FeatureNet(colors(tmp_path / "plain.onnx"))(PICTURE)
    np.testing.assert_allclose(plain, PICTURE.transpose(2, 0, 1) / np.float32(255), rtol=1e-6)


def test_rows_of_pixels_in_uint8_are_fed_as_they_are(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["y"], perm=[0, 3, 1, 2]),
    ]
    path = write_onnx(tmp_path / "f.onnx", nodes, [1, 32, 32, 3], TensorProto.UINT8)
    flat = np.full((64, 64, 3), 7, np.uint8)
    assert (FeatureNet(path)(flat) == 7).all() and FeatureNet(path)(flat).shape == (3, 32, 32)


@pytest.mark.parametrize("token", [0, 1])
def test_patches_become_a_grid_without_their_class_token(tmp_path: Path, token: int) -> None:
    net = FeatureNet(colors(tmp_path / "f.onnx"))
    patches = np.arange((4 + token) * 2, dtype=np.float32).reshape(1, -1, 2)
    assert net._grid(patches)[:, 1, 0].tolist() == patches[0, 2 + token].tolist()
    with pytest.raises(ArtifactError, match="expected a map"):
        net._grid(np.zeros((1, 7, 2), np.float32))


def test_text_maps_are_scaled_cosines_by_class_id(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([[2, 0, 0], [0, 3, 0], [0, 0, 1]], np.float32))
    maps = TextMaps(FeatureNet(colors(tmp_path / "f.onnx", logit_scale="10")), tmp_path / "t.npy", CLASSES)
    green = np.zeros((32, 32, 3), np.uint8)
    green[..., 1] = 200
    assert maps(green)[:, 0, 0].tolist() == pytest.approx([0, 0, 10, 0])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    net = FeatureNet(colors(tmp_path / "f.onnx"))
    for rows, message in (
        (np.ones((7, 3), np.float32), "7 rows; expected one for each of 3 categories"),
        (np.full((3, 3), np.nan, np.float32), "expected finite numbers"),
    ):
        np.save(tmp_path / "t.npy", rows)
        with pytest.raises(ArtifactError, match=message):
            TextMaps(net, tmp_path / "t.npy", CLASSES)
    np.save(tmp_path / "t.npy", np.ones((3, 5), np.float32))
    with pytest.raises(ArtifactError, match=r"rows of 5, but .* gives 3 channels"):
        TextMaps(net, tmp_path / "t.npy", CLASSES)(PICTURE)
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ArtifactError, match="not an ONNX network"):
        FeatureNet(tmp_path / "text.onnx")
    with pytest.raises(ArtifactError, match="its metadata mean is"):
        FeatureNet(colors(tmp_path / "bad.onnx", mean="[1, 2]"))
    with pytest.raises(ValueError, match="need both"):
        Teachers(maps=tmp_path / "f.onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """L-Net and classifier of lite0 with fresh weights whose norms know their pictures; a set beside them."""
    root = tmp_path_factory.mktemp("teachers")
    data = VocDataset.open(write_squares(root / "data"))
    x = torch.from_numpy(np.stack([data.image(i) for i in data.ids("train")])).permute(0, 3, 1, 2).float() / 255
    for stage, count in (("lnet", 0), ("classifier", len(CLASSES))):
        torch.manual_seed(count)
        net = build_model("lite0", num_classes=count)
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = None
        with torch.no_grad():
            net.train()(x)
        meta = CheckpointMeta(stage=stage, arch="lite0", classes=CLASSES, preprocess=SPEC, strong=STRONG)
        whole = Classifier(net) if stage == "classifier" else net
        Checkpoint.save(root / f"run/{stage}/best.pt", meta, whole.state_dict())
        if stage == "lnet":
            graph = emit_floats(Features(net.eval()), (3, *SPEC.size_hw))
            (root / "own.onnx").write_bytes(graph.SerializeToString())
    return root


def labels_of(folder: Path) -> dict[str, list[int]]:
    return {p.stem: read_mask(p).ravel().tolist() for p in (folder / "SegmentationClass").glob("*.png")}


def test_lite0_s_own_features_from_a_file_give_the_labels_that_it_gives_itself(run: Path, tmp_path: Path) -> None:
    plain = write_labels(run / "run", run / "data", tmp_path / "plain", config=ONE_LOOK)
    taught = write_labels(
        run / "run", run / "data", tmp_path / "own", config=ONE_LOOK, teachers=Teachers(features=run / "own.onnx")
    )
    ours, theirs = labels_of(tmp_path / "plain"), labels_of(tmp_path / "own")
    assert ours.keys() == theirs.keys() and plain.images > 2
    same = [a == b for i in ours for a, b in zip(ours[i], theirs[i], strict=True)]
    assert sum(same) / len(same) > 0.999
    assert set(taught.sha256) == {"lnet", "classifier", "features"}


def test_other_features_and_text_maps_change_the_labels_and_need_no_classifier(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.eye(3, dtype=np.float32))
    teachers = Teachers(features=run / "own.onnx", maps=colors(tmp_path / "f.onnx"), text=tmp_path / "t.npy")
    report = write_labels(run / "run", run / "data", tmp_path / "maps", config=ONE_LOOK, teachers=teachers)
    plain = write_labels(run / "run", run / "data", tmp_path / "plain", config=ONE_LOOK)
    assert set(report.sha256) == {"lnet", "features", "maps", "text"}
    assert labels_of(tmp_path / "maps") != labels_of(tmp_path / "plain")
    assert report.images == plain.images


def test_self_diffusion_may_follow_the_encoder_s_features(run: Path, tmp_path: Path) -> None:
    """Two levels of length 1 each, on the finer grid; labels differ where categories meet."""
    levels = [torch.rand(1, 40, 8, 8), torch.rand(1, 112, 4, 4)]
    seen = seen_by(levels)
    assert seen.shape == (1, 152, 8, 8)
    torch.testing.assert_close(seen.norm(dim=1), torch.full((1, 8, 8), 2**0.5))
    config = msgspec.structs.replace(ONE_LOOK, affinity="encoder")
    report = write_labels(run / "run", run / "data", tmp_path / "encoder", config=config)
    assert report.settings.affinity == "encoder" and report.images > 2


def test_maps_are_brought_to_the_grid() -> None:
    assert resized_map(np.zeros((2, 7, 7), np.float32), (8, 12)).shape == (2, 8, 12)
