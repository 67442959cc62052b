"""Networks of other projects -> ONNX files, for docs/results/own-model.md. 11 classes, seed 0; random weights at 320x256, or trained.

Needs, in an environment of their own beside CPU torch 2.13:
    pip install --no-deps torchvision==0.28.0 segmentation-models-pytorch==0.6.0 timm transformers tokenizers \
        huggingface_hub safetensors regex pyyaml requests
    python scripts/foreign_zoo.py OUT
    python scripts/foreign_zoo.py OUT smp-unet-lite0 torchvision-lraspp --train camvid --size 160 224 --minutes 9
"""

# mypy: disallow-untyped-calls=False, warn-return-any=False
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

SIZE_HW = (256, 320)
CLASSES = 11
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def smp(kind: str, classes: int = CLASSES, **more: Any) -> torch.nn.Module:
    import segmentation_models_pytorch as models

    return getattr(models, kind)(encoder_weights=None, classes=classes, **more)


def smp_lite0(kind: str, **more: Any) -> torch.nn.Module:
    """A decoder on EfficientNet-lite0 with ImageNet weights. The package's tensors stand in timm's order, under other names."""
    from tsss_edge.models.pretrained import imagenet_file

    net: Any = smp(kind, encoder_name="timm-tf_efficientnet_lite0", **more)
    encoder = net.encoder.state_dict()
    weights = torch.load(imagenet_file("lite0"), map_location="cpu", weights_only=True)
    kept = [tensor for name, tensor in weights.items() if not name.startswith("_fc.")]
    net.encoder.load_state_dict(dict(zip(encoder, kept, strict=True)))
    return net


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
    "smp-unet-lite0": lambda: smp_lite0("Unet", decoder_channels=(64, 48, 32, 24, 16)),
    "smp-fpn-lite0": lambda: smp_lite0("FPN", decoder_pyramid_channels=96, decoder_segmentation_channels=64),
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
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop a training after so long; the next run goes on"
    )
    args = parser.parse_args()
    declare_torchvision_ops()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    for name in args.names or ZOO:
        torch.manual_seed(0)
        net = Tensors(ZOO[name]()).eval()
        if args.train:
            name = f"{name}-trained"
            training = Training(net, args.train, tuple(args.size), args.epochs, out / f"{name}.pt")
            if not training.run(args.minutes):
                print(f"{name}: stopped after epoch {training.epoch} of {args.epochs}; run again to go on", flush=True)
                continue
        else:
            count_batches(net, tuple(args.size))
        torch.onnx.export(net, (torch.zeros(1, 3, *args.size),), out / f"{name}.onnx", dynamo=False, opset_version=17)
        print(f"{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters", flush=True)


class Training:
    """Plain supervised training on the train list: AdamW, cross-entropy, mirrored halves, ImageNet's mean and deviation.

    After each epoch its state is in `state_file`, from which the next run goes on.
    """

    def __init__(
        self, net: torch.nn.Module, data: Path, size_hw: tuple[int, int], epochs: int, state_file: Path, batch: int = 8
    ) -> None:
        from tsss_edge.data.voc import VocDataset

        dataset = VocDataset.open(data)
        ids = list(dataset.ids("train"))
        wh = size_hw[::-1]
        self.pictures = np.stack([cv2.resize(dataset.image(i), wh, interpolation=cv2.INTER_AREA) for i in ids])
        self.masks = np.stack([cv2.resize(dataset.mask(i), wh, interpolation=cv2.INTER_NEAREST) for i in ids])
        self.net, self.epochs, self.epoch, self.batch, self.state_file = net, epochs, 0, batch, state_file
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        steps = epochs * (len(ids) // batch)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 2e-3, total_steps=steps)
        if state_file.exists():
            state = torch.load(state_file, weights_only=True)
            parts: tuple[Any, ...] = (self.net, self.optimizer, self.schedule)
            for part, kept in zip(parts, state["parts"], strict=True):
                part.load_state_dict(kept)
            self.epoch = state["epoch"]

    def run(self, minutes: float) -> bool:
        """Train until all epochs are done (True) or the time is up (False)."""
        end = time.monotonic() + 60 * minutes
        while self.epoch < self.epochs and time.monotonic() < end:
            loss = self.one_epoch(np.random.default_rng(self.epoch))
            self.epoch += 1
            parts = [part.state_dict() for part in (self.net, self.optimizer, self.schedule)]
            torch.save({"epoch": self.epoch, "parts": parts}, self.state_file)
            print(f"epoch {self.epoch}: loss {loss:.3f}", flush=True)
        self.net.eval()
        return self.epoch == self.epochs

    def one_epoch(self, random: np.random.Generator) -> float:
        """Mean loss of one pass over the pictures."""
        mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
        self.net.train()
        order, total, starts = random.permutation(len(self.pictures)), 0.0, len(self.pictures) // self.batch
        for chosen in order[: starts * self.batch].reshape(starts, self.batch):
            flip = slice(None, None, -1 if random.random() < 0.5 else 1)
            x = torch.from_numpy(np.ascontiguousarray(self.pictures[chosen][:, :, flip])).permute(0, 3, 1, 2).float()
            y = torch.from_numpy(np.ascontiguousarray(self.masks[chosen][:, :, flip])).long()
            scores = self.net((x / 255 - mean) / std)
            first = scores if isinstance(scores, torch.Tensor) else scores[0]
            loss = torch.nn.functional.cross_entropy(first, y, ignore_index=255)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += float(loss.detach())
        return total / starts


@torch.no_grad()
def count_batches(net: torch.nn.Module, size_hw: tuple[int, int], batches: int = 3) -> None:
    """Let batch norms measure their statistics on noise, so that random weights keep signals in range."""
    net.train()
    for _ in range(batches):
        net(torch.randn(4, 3, *size_hw))
    net.eval()


if __name__ == "__main__":
    main()
