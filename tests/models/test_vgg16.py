"""vgg16-largefov: the paper's layers, stride-8 logits, torchvision's numbers, and what its normalisation becomes."""

from __future__ import annotations

from pathlib import Path

import netkit
import onnx
import torch
from torch import nn

from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.models import build_model
from tsss_edge.models.fused import FusedNet
from tsss_edge.models.vgg16 import IMAGENET_MEAN, IMAGENET_STD, Vgg16Encoder, from_torchvision


def test_layers_are_numbered_as_torchvision_numbers_them() -> None:
    convolutions = [i for i, layer in enumerate(Vgg16Encoder().features) if isinstance(layer, nn.Conv2d)]
    assert convolutions == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def test_logits_have_stride_8_and_weights_the_papers_size() -> None:
    """14.71 M of VGG16's convolutions, 512*1024*9 + 1024 of fc6, 1024*1024 + 1024 of fc7, 1025 a class."""
    net = build_model("vgg16-largefov", num_classes=21, objectness=False).eval()
    assert sum(p.numel() for p in net.parameters()) == 14_714_688 + 4_719_616 + 1_049_600 + 21 * 1025
    with torch.no_grad():
        assert net(torch.rand(1, 3, 64, 96)).logits.shape == (1, 21, 8, 12)


def test_field_of_view_of_one_logit() -> None:
    """fc6 alone reaches 12 cells to either side: a change 12 cells away is seen, and in no cell between the taps."""
    decoder = build_model("vgg16-largefov", num_classes=2).decoder.eval()
    x = torch.rand(1, 512, 1, 32, requires_grad=True)
    (seen,) = torch.autograd.grad(decoder(x)[0, :, 0, 16].sum(), x)
    assert seen.abs().sum(dim=(0, 1, 2)).nonzero().flatten().tolist() == [4, 16, 28]


def test_torchvision_normalisation_goes_into_the_first_convolution() -> None:
    encoder = Vgg16Encoder().double().eval()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    nn.init.normal_(state["features.0.bias"])
    encoder.load_state_dict(state)
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    want = encoder.features[0]((image - mean) / std)
    encoder.load_state_dict(from_torchvision(state, scale=2.0))
    got = encoder.features[0](image * 2)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], want[..., 1:-1, 1:-1], atol=1e-5, rtol=0)


def test_fused_is_the_trained_network() -> None:
    net = build_model("vgg16-largefov", num_classes=5).eval()
    pictures = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        want = net(pictures.permute(0, 3, 1, 2).float() / 255).logits
        got = FusedNet(net)(pictures)["logits"]
    torch.testing.assert_close(got, want, atol=1e-5 * want.abs().max().item(), rtol=0)


def test_it_is_exported_as_it_is(tmp_path: Path) -> None:
    """`export_onnx` compares ONNX Runtime with PyTorch and refuses a graph that differs."""
    checkpoint = netkit.checkpoint(tmp_path / "net.pt", "vgg16-largefov")
    graph = onnx.load(export_onnx(checkpoint.path, tmp_path / "net.onnx").path).graph
    strides = [list(a.ints) for n in graph.node if n.op_type == "MaxPool" for a in n.attribute if a.name == "strides"]
    assert strides == [[2, 2], [2, 2], [2, 2], [1, 1], [1, 1]]


def test_the_last_block_sees_every_second_point() -> None:
    """DeepLab's block 5: three 3x3 convolutions of dilation 2 after a pool of stride 1, so that the stride stays 8."""
    convolutions = [m for m in Vgg16Encoder().features if isinstance(m, nn.Conv2d)]
    assert [c.dilation[0] for c in convolutions] == [1] * 10 + [2] * 3
    assert all(c.padding == c.dilation for c in convolutions), "sizes are kept"
