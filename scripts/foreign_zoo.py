"""Networks of other projects -> ONNX files, for docs/results/own-model.md. Random weights, seed 0, 11 classes, 320x256.

Needs, in an environment of their own beside CPU torch 2.13:
    pip install --no-deps torchvision==0.28.0 segmentation-models-pytorch==0.6.0 timm transformers tokenizers \
        huggingface_hub safetensors regex pyyaml requests
    python scripts/foreign_zoo.py OUT
"""

# mypy: disallow-untyped-calls=False, warn-return-any=False
from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

SIZE_HW = (256, 320)
CLASSES = 11


def declare_torchvision_ops() -> None:
    """torchvision's wheel is made for another build of torch; its meta functions only need these names to exist."""
    library = torch.library.Library("torchvision", "DEF")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor",
        "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
        "SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor",
        "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> (Tensor, Tensor)",
        "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor",
        "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
        "int sampling_ratio) -> (Tensor, Tensor)",
        "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width, int sampling_ratio, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor",
        "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
        "-> (Tensor, Tensor)",
        "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor",
        "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
        "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) "
        "-> Tensor",
        "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
        "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
        "SymInt offset_groups, bool use_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    ):
        library.define(schema)
    globals()["_library"] = library  # the names live as long as it does


def smp(kind: str, classes: int = CLASSES, **more: object) -> torch.nn.Module:
    import segmentation_models_pytorch as models

    return getattr(models, kind)(encoder_weights=None, classes=classes, **more)


def torchvision_net(kind: str) -> torch.nn.Module:
    import torchvision

    extra = {"weights_backbone": None, "weights": None, "num_classes": CLASSES}
    return getattr(torchvision.models.segmentation, kind)(**extra)


def segformer() -> torch.nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES))


class Argmax(torch.nn.Module):
    """A network that gives class ids."""

    def __init__(self, inside: torch.nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.inside(picture).argmax(1)


class Tensors(torch.nn.Module):
    """A network whose dict of outputs became a tuple, as torch.onnx wants it."""

    def __init__(self, inside: torch.nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, picture: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        found = self.inside(picture)
        return (
            found
            if isinstance(found, torch.Tensor)
            else tuple(v for v in found.values() if isinstance(v, torch.Tensor))
        )


ZOO: dict[str, Callable[[], torch.nn.Module]] = {
    "smp-unet-resnet18": lambda: smp("Unet", encoder_name="resnet18"),
    "smp-fpn-mobilenet": lambda: smp("FPN", encoder_name="mobilenet_v2"),
    "smp-deeplabv3plus-resnet18": lambda: smp("DeepLabV3Plus", encoder_name="resnet18"),
    "torchvision-fcn-resnet50": lambda: torchvision_net("fcn_resnet50"),
    "torchvision-lraspp": lambda: torchvision_net("lraspp_mobilenet_v3_large"),
    "segformer-b0": segformer,
    "unet-argmax": lambda: Argmax(
        smp("Unet", encoder_name="resnet18", encoder_depth=4, decoder_channels=(64, 48, 32, 16))
    ),
    "linknet-sigmoid": lambda: smp("Linknet", classes=1, encoder_name="resnet18", activation="sigmoid"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument(
        "--train", type=Path, help="a set in VOC layout; the networks learn it first, NAME-trained.onnx"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=SIZE_HW, metavar=("H", "W"))
    args = parser.parse_args()
    declare_torchvision_ops()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    for name in args.names or ZOO:
        torch.manual_seed(0)
        net = Tensors(ZOO[name]()).eval()
        if args.train:
            learn(net, args.train, args.epochs, tuple(args.size))
            name = f"{name}-trained"
        else:
            count_batches(net, tuple(args.size))
        torch.onnx.export(net, (torch.zeros(1, 3, *args.size),), out / f"{name}.onnx", dynamo=False, opset_version=17)
        print(f"{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters", flush=True)


def learn(net: torch.nn.Module, data: Path, epochs: int, size_hw: tuple[int, int], batch: int = 4) -> None:
    """Plain supervised training on the train list: Adam, cross-entropy, mirrored halves, ImageNet's mean and deviation."""
    from tsss_edge.data.voc import VocDataset

    dataset, random = VocDataset.open(data), np.random.default_rng(0)
    ids = list(dataset.ids("train"))
    pictures = np.stack([cv2.resize(dataset.image(i), size_hw[::-1], interpolation=cv2.INTER_AREA) for i in ids])
    masks = np.stack([cv2.resize(dataset.mask(i), size_hw[::-1], interpolation=cv2.INTER_NEAREST) for i in ids])
    mean, std = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    steps = epochs * (len(ids) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    net.train()
    for epoch in range(epochs):
        order, total = random.permutation(len(ids)), 0.0
        for start in range(0, len(ids) // batch * batch, batch):
            chosen = order[start : start + batch]
            flip = slice(None, None, -1 if random.random() < 0.5 else 1)
            x = torch.from_numpy(np.ascontiguousarray(pictures[chosen][:, :, flip])).permute(0, 3, 1, 2).float() / 255
            y = torch.from_numpy(np.ascontiguousarray(masks[chosen][:, :, flip])).long()
            scores = net((x - mean) / std)
            first = scores if isinstance(scores, torch.Tensor) else scores[0]
            loss = torch.nn.functional.cross_entropy(first, y, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}: loss {total / (len(ids) // batch):.3f}", flush=True)
    net.eval()


@torch.no_grad()
def count_batches(net: torch.nn.Module, size_hw: tuple[int, int], batches: int = 3) -> None:
    """Let batch norms measure their statistics on noise, so that random weights keep signals in range."""
    net.train()
    for _ in range(batches):
        net(torch.randn(4, 3, *size_hw))
    net.eval()


if __name__ == "__main__":
    main()
