"""The labels of one picture -> areas, outlines, a blended picture, files: what `tsss_edge.load(...)(picture)` gives."""
# Letters: H height, W width of the picture, as it was given.

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes
from tsss_edge.data.voc import write_mask
from tsss_edge.drawing import Draw, blended, with_legend
from tsss_edge.files import write_bytes


@dataclass(frozen=True)
class Segmentation:
    """What a network found in one picture.

    labels: (H,W) uint8 class ids at the picture's own size; 255 where the network did not look (fit `crop`).
    image: the picture, (H,W,3) uint8 RGB. classes: names and colours of the ids.
    """

    labels: NDArray[np.uint8]
    image: NDArray[np.uint8] = field(repr=False)
    classes: Classes

    def areas(self) -> dict[str, int]:
        """Pixels of each class that occurs, by name, background included."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        return {name: int(counts[i]) for i, name in enumerate(self.classes.names) if counts[i]}

    def polygons(self) -> dict[str, list[NDArray[np.int32]]]:
        """Outer outlines of the regions of each object class that occurs: (n,2) int32, x and y in pixels. Holes are left out."""
        found = {}
        for i in self.classes.objects:
            outlines, _ = cv2.findContours(
                (self.labels == i).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            if outlines:
                found[self.classes.names[i]] = [np.asarray(outline, np.int32)[:, 0] for outline in outlines]
        return found

    def overlay(self, alpha: float = 0.5, draw: Draw = "names") -> NDArray[np.uint8]:
        """The picture with the object classes in their colours: (H,W,3) uint8 RGB.

        Args: alpha: 0 (picture) to 1 (colour). draw: "plain" (colours alone), "outlines", "names" (outlines and the name of
              each class at its largest region), "legend" (a legend at the top too).
        """
        return blended(self.image, self.labels, self.classes, draw, alpha)

    def figure(self, alpha: float = 0.5) -> NDArray[np.uint8]:
        """`overlay` with a legend below it, classes by area: (H+h,W,3) uint8 RGB."""
        return with_legend(self.overlay(alpha), self.labels, self.classes)

    def save(self, path: str | Path) -> Path:
        """Write labels as an index PNG (`.png`) or the figure as JPEG (`.jpg`). Raises: ValueError: another suffix."""
        path = Path(path)
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"{path}: expected .png for the labels or .jpg for the picture with the labels on it")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".png":
            write_mask(path, self.labels)
        else:
            done, data = cv2.imencode(".jpg", np.ascontiguousarray(self.figure()[..., ::-1]))
            assert done, "OpenCV could not encode a JPEG"
            write_bytes(path, data.tobytes())
        return path
