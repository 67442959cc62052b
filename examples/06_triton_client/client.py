"""JPEG files -> a Triton server -> label maps, several requests under way at a time.

    python client.py SERVER:8001 MODEL PHOTOS MASKS

MODEL is the name that was given to `tsss-edge triton --ensemble`.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from PIL import Image

UNDER_WAY = 8  # requests at a time; the server puts them together in batches


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("server", help="host:port of the gRPC endpoint")
    parser.add_argument("model")
    parser.add_argument("photos", type=Path)
    parser.add_argument("masks", type=Path)
    args = parser.parse_args()
    photos = sorted(path for path in args.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    refused = segment(args.server, args.model, photos, args.masks)
    print(f"{len(photos) - len(refused)} masks in {args.masks}")
    for line in refused:
        print(line, file=sys.stderr)
    sys.exit(bool(refused))


def segment(server: str, model: str, photos: list[Path], masks: Path) -> list[str]:
    """Write `masks`/NAME.png for every photograph; returns a line for each that the server refused."""
    masks.mkdir(parents=True, exist_ok=True)
    with triton.InferenceServerClient(server) as client, ThreadPoolExecutor(UNDER_WAY) as pool:

        def one(photo: Path) -> str:
            try:
                Image.fromarray(labels(client, model, photo)).save(masks / f"{photo.stem}.png")
            except triton.InferenceServerException as error:
                return f"{photo}: {error.message()}"
            return ""

        return [line for line in pool.map(one, photos) if line]


def labels(client: triton.InferenceServerClient, model: str, photo: Path) -> np.ndarray:
    """(H,W) uint8 label map of a JPEG file, at its own size."""
    data = np.frombuffer(photo.read_bytes(), np.uint8)
    given = triton.InferInput("jpeg", list(data.shape), "UINT8")
    given.set_data_from_numpy(data)
    return np.asarray(client.infer(f"{model}_jpeg", [given]).as_numpy("labels"), np.uint8)


if __name__ == "__main__":
    main()
