"""The fused network is the trained one, and its layers have names."""

from __future__ import annotations

import netkit
import numpy as np
import pytest
import torch
from torch import fx, nn

from tsss_edge.artifacts import Preprocess
from tsss_edge.errors import ArtifactError
from tsss_edge.models import build_model
from tsss_edge.models.fused import FusedNet, fold, fold_batch_norm, layer_names, pixel_step


def test_batch_norm_folds_by_hand() -> None:
    """One weight of 2, mean 1, variance 4 - eps, gamma 6, beta 5: y = (2x - 1) / 2 * 6 + 5 = 6x + 2."""
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1)
    conv.weight.data.fill_(2)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.fill_(1)
    norm.running_var.fill_(4 - norm.eps)
    norm.weight.data.fill_(6)
    norm.bias.data.fill_(5)
    fused = fold_batch_norm(conv, norm)
    assert fused.weight.item() == pytest.approx(6) and fused.bias is not None and fused.bias.item() == pytest.approx(2)


@pytest.mark.parametrize("arch", ["edge-s", "edge-m", "lite0"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_fused_is_the_trained_network(arch: str, scale: float) -> None:
    """Folding changes rounding only: 1e-5 of the largest logit (measured 2e-6; 1.3e-5 over lite0's fifty layers)."""
    spec = Preprocess(size_hw=(64, 96), scale=scale)
    net = netkit.network(arch, spec=spec)
    pictures = torch.from_numpy(np.stack([netkit.picture(s) for s in range(3)]))
    with torch.no_grad():
        want = net(pictures.permute(0, 3, 1, 2).float() / 255 * scale)
        got = FusedNet(net, scale=scale, head="both", objectness=True)(pictures)
    assert want.logits is not None and want.objectness is not None
    share = 4e-5 if arch == "lite0" else 1e-5
    limit = share * want.logits.abs().max().item()
    torch.testing.assert_close(got["logits"], want.logits, rtol=0, atol=limit)
    torch.testing.assert_close(
        got["objectness"], want.objectness, rtol=0, atol=share * want.objectness.abs().max().item()
    )
    wide = torch.nn.functional.interpolate(want.logits, size=(64, 96), mode="bilinear", align_corners=False)
    assert got["labels"].dtype == torch.uint8 and got["labels"].shape == (3, 64, 96)
    assert (got["labels"] == wide.argmax(1)).float().mean() > 0.9999


def test_a_mean_stays_as_one_subtraction_of_pixel_values() -> None:
    """lite0 sees (value - 127) / 128: folded, the convolution takes the 128, and 127 is subtracted before it."""
    folded = fold(netkit.network("lite0"), 1.0)
    assert (folded.encoder.normalize.gain, folded.encoder.normalize.offset) == (1.0, 127.0)
    assert pixel_step(netkit.network("lite0"), 1.0) == pytest.approx(1 / 128)
    assert pixel_step(netkit.network("edge-s"), 2.0) == pytest.approx(2 / 255)


def test_the_trained_network_is_left_alone() -> None:
    net = netkit.network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    FusedNet(net)
    assert net.object_head is not None
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_no_batch_norm_is_left() -> None:
    assert not [m for m in fold(netkit.network(), 1.0).modules() if isinstance(m, nn.BatchNorm2d)]


def test_batch_norm_that_cannot_fold_is_named() -> None:
    net = netkit.network()
    net.encoder.extra = nn.BatchNorm2d(3)
    with pytest.raises(ArtifactError, match=r"batch norm encoder\.extra does not follow a convolution"):
        fold(net, 1.0)


def test_missing_heads_are_refused() -> None:
    with pytest.raises(ArtifactError, match="no class output"):
        FusedNet(build_model("edge-s", num_classes=0))
    with pytest.raises(ArtifactError, match="no objectness output"):
        FusedNet(build_model("edge-s", num_classes=3, objectness=False), objectness=True)


def test_names_follow_the_module_path_and_are_unique() -> None:
    names = list(layer_names(fx.symbolic_trace(FusedNet(netkit.network(), head="both", objectness=True))).values())
    assert len(set(names)) == len(names)
    assert {"encoder.stem", "encoder.stem.relu", "encoder.stages.1.1.first", "encoder.stages.1.1.add"} <= set(names)
    assert {"decoder.laterals.2", "decoder.resize", "decoder.resize.2", "class_head", "object_head"} <= set(names)


def test_trained_and_fused_networks_name_layers_alike() -> None:
    """Quantization-aware training finds the tensors of the exported graph by these names."""
    net = netkit.network()
    trained = set(layer_names(fx.symbolic_trace(net)).values())
    fused = set(layer_names(fx.symbolic_trace(FusedNet(net, objectness=True))).values())
    assert {n for n in fused if not n.endswith("identity")} - {"cast", "transpose"} <= trained
