"""An INT8 engine to time the live loop on: random weights, which cost what trained ones cost -> OUT/fused.int8.xml.

python scripts/stream_engine.py --out runs/stream-engine
tsss-edge bench runs/stream-engine/fused.int8.xml --stream street.mp4 --naive runs/stream-engine/fused.onnx

Its masks have no meaning but many edges, which is the hard case for upsampling and blending.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Preprocess
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.data.synthetic import CLASSES, write_synthetic
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.models import build_model


def make_engine(out: Path, arch: str, size: int) -> Path:
    torch.manual_seed(0)
    meta = CheckpointMeta(stage="pnet", arch=arch, classes=CLASSES, preprocess=Preprocess(size_hw=(size, size)))
    checkpoint = Checkpoint.save(out / "best.pt", meta, build_model(arch, num_classes=len(CLASSES)).state_dict())
    write_synthetic(out / "data", train=16, val=2, size=size)
    onnx = export_onnx(checkpoint.path, out / "fused.onnx")
    int8 = calibrate(onnx.path, out / "data", out / "fused.int8.onnx", size=16)
    return build_engine(int8.path, load_target("cpu"), out / "fused.xml", precision="int8").path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arch", default="edge-m")
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()
    sys.stdout.write(f"{make_engine(args.out, args.arch, args.size)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
