"""Images whose masks may be seen -> how far the guided filter of the labels should reach (ours).

Painted objects have sharp borders on a soft background, and a wide filter finds them; in photographs a wide filter smears,
and a narrow one gains little (measured: docs/results/transfer.md). So nobody has to know: of a few radii the one is taken
whose foreground agrees best with the masks of strong images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from tsss_edge.label.annotate import EdgeFit, sharpened
from tsss_edge.label.diffusion import Floats
from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.train.loader import MaskOf
from tsss_edge.train.validate import Views, object_truth

RADII = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8)
CAREFUL = EdgeFit(radius=1 / 64)  # where there is no mask to choose by


class Labeller(Protocol):
    """What finds a foreground."""

    def foreground(self, views: Views) -> Iterator[tuple[str, Floats]]: ...


def choose_edges(labeller: Labeller, known: Views, mask_of: MaskOf) -> EdgeFit:
    """The radius with the best object IoU on the images `known`, of which `mask_of` gives what may be seen."""
    if not known.ids:
        return CAREFUL
    counts = {EdgeFit(radius=radius): ConfusionMatrix(2) for radius in RADII}
    for image_id, foreground in labeller.foreground(known):
        picture, truth = known.dataset.image(image_id), object_truth(mask_of(image_id))
        for edges, matrix in counts.items():
            seen = sharpened(foreground, picture, known.preprocess, edges)[0] > 0.5
            matrix.update(seen.astype(np.uint8), truth)
    return max(counts, key=lambda edges: float(counts[edges].iou[1]))
