"""A clip of DAVIS + its masks -> the clip of a camera that stands still, with one mover, and the masks again.

The object of each frame on the first frame, out of which it is painted (OpenCV's inpainting), and a sensor's noise. DAVIS is given
out for research: the clips stay out of the repository.

    python scripts/still_clip.py davis2016_val/clips/dog runs/dog-still          # writes runs/dog-still.mp4 and runs/dog-still/
    tsss-edge stream photo.int8.xml runs/dog-still.mp4 null:// --truth runs/dog-still --truth-class dog --reuse motion
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsss_edge.data.pictures import read_mask

NOISE = 1.5  # levels of 255, standard deviation
AROUND = 9  # pixels that a mask grows by before its object is painted out: its shadow and blur
QUALITY = 18  # x264's constant rate factor

Picture = NDArray[np.uint8]


def main() -> None:
    """Read the clip, paint, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="CLIP.mp4 beside a folder CLIP of masks, one a frame")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=float, default=1.0, help="of the object, as a share of its own: 0.4 is far away")
    args = parser.parse_args()
    masks = sorted(args.clip.glob("*.png"))
    frames = list(read_frames(args.clip.with_suffix(".mp4")))
    if not masks or len(masks) != len(frames):
        raise SystemExit(f"{args.clip}: {len(masks)} masks and {len(frames)} frames; expected one mask a frame")
    args.out.mkdir(parents=True)
    objects = [(read_mask(mask) == 1).astype(np.uint8) for mask in masks]
    gone = cv2.dilate(objects[0], np.ones((AROUND, AROUND), np.uint8))
    background = np.asarray(cv2.inpaint(frames[0], gone, 5, cv2.INPAINT_TELEA), np.uint8)
    frames, objects = ([shrunk(picture, args.size) for picture in pictures] for pictures in (frames, objects))
    for path, shown in zip(masks, objects, strict=True):
        Image.fromarray(shown).save(args.out / path.name)
    write_frames(args.out.with_suffix(".mp4"), still(background, frames, objects))


def shrunk(picture: Picture, size: float) -> Picture:
    """(H,W) or (H,W,3) uint8 -> the same size, its content smaller around the middle and zeros beside it."""
    if size == 1:
        return picture
    middle = (picture.shape[1] / 2, picture.shape[0] / 2)
    kind = cv2.INTER_NEAREST if picture.ndim == 2 else cv2.INTER_LINEAR
    return np.asarray(
        cv2.warpAffine(picture, cv2.getRotationMatrix2D(middle, 0, size), picture.shape[1::-1], flags=kind)
    )


def still(background: Picture, frames: list[Picture], objects: list[Picture]) -> Iterator[Picture]:
    """(H,W,3) uint8 pictures and where the object is in them -> the object on a background that stands still."""
    rng = np.random.default_rng(0)
    for frame, shown in zip(frames, objects, strict=True):
        picture = np.where(shown[..., None] > 0, frame, background) + rng.normal(0, NOISE, frame.shape)
        yield picture.clip(0, 255).astype(np.uint8)


def read_frames(path: Path) -> Iterator[Picture]:
    """RGB frames of a video."""
    with av.open(str(path)) as video:
        for frame in video.decode(video=0):
            yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def write_frames(path: Path, frames: Iterator[Picture]) -> None:
    """H.264."""
    with av.open(str(path), "w") as video:
        stream = None
        for picture in frames:
            if stream is None:
                stream = video.add_stream("libx264", rate=24, options={"crf": str(QUALITY)})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is not None:
            video.mux(stream.encode())


if __name__ == "__main__":
    main()
