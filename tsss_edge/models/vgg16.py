"""The network of the paper, as we read it: DeepLab-LargeFOV on VGG16, logits at stride 8.

VGG16 (arXiv 1409.1556) whose last two poolings keep the stride at 8 and whose fifth block is dilated by 2; then "fc6", a
3x3 convolution of dilation 12, and "fc7", both 1024 wide (arXiv 1412.7062, section 4.1, model DeepLab-LargeFOV). The
encoder's layers are numbered as torchvision numbers `vgg16().features`, so that its weights load by name.
"""
# Letters: N batch, H height, W width.

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsss_edge.models.segnet import SegNet

BLOCKS = ((64, 2, 2), (128, 2, 2), (256, 3, 2), (512, 3, 1), (512, 3, 1))  # channels, convolutions, stride of the pool
FOV_DILATION, FOV_CHANNELS = 12, 1024

# What torchvision's weights expect: (value / 255 - mean) / std (torchvision.models.VGG16_Weights).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Vgg16Encoder(nn.Module):
    """(N,3,H,W) -> (N,512,H/8,W/8)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block, (width, convolutions, stride) in enumerate(BLOCKS):
            dilation = 2 if block == len(BLOCKS) - 1 else 1
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, 1, dilation, dilation), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(3, stride, 1))  # 3x3 as DeepLab has it: a 2x2 pool of stride 1 would shift
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)
        return features


class LargeFov(nn.Sequential):
    """(N,512,H/8,W/8) -> (N,1024,H/8,W/8): fc6 with its large field of view, and fc7."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(BLOCKS[-1][0], FOV_CHANNELS, 3, 1, FOV_DILATION, FOV_DILATION),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(FOV_CHANNELS, FOV_CHANNELS, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )


def vgg16_largefov(*, num_classes: int, objectness: bool = True) -> SegNet:
    """DeepLab-LargeFOV with fresh weights (He initialisation, as there is no batch norm to set the scale)."""
    net = SegNet(Vgg16Encoder(), LargeFov(), FOV_CHANNELS, num_classes=num_classes, objectness=objectness)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for head in (net.class_head, net.object_head):
        if head is not None:
            nn.init.normal_(head.weight, std=0.01)  # as DeepLab's fc8
    return net


def from_torchvision(features: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The `features....` tensors of torchvision's `vgg16` -> those of `Vgg16Encoder`, which sees `value / 255 * scale`.

    Torchvision's input normalisation, `(x - mean) / std`, goes into the first convolution: exact but in the outermost
    pixels, where zero padding now is black instead of the mean colour.
    """
    weight, bias = features["features.0.weight"].double(), features["features.0.bias"].double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    first = {
        "features.0.weight": (weight / std / scale).float(),
        "features.0.bias": (bias - (weight * mean / std).sum(dim=(1, 2, 3))).float(),
    }
    return {**features, **first}
