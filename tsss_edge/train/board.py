"""What TensorBoard shows of a network with classes beside its losses: IoU of each class, a few pictures of val."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tsss_edge.drawing.sheet import contact_sheet, tile
from tsss_edge.metrics import per_class
from tsss_edge.scoring import Views, class_matrix, net_answers

PICTURES = 6  # of val, spread over the list


class ClassValidation:
    """Scores a network on val, and keeps what the board shows beside mIoU and pixel accuracy."""

    def __init__(self, views: Views) -> None:
        self._views = views
        step = max(1, len(views.ids) // PICTURES)
        self._few = Views(views.dataset, views.ids[::step][:PICTURES], views.preprocess)
        self.iou: dict[str, float] = {}  # percent by name of the last call, classes that do not occur left out

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """mIoU in percent and pixel accuracy 0-1 of the class head."""
        matrix = class_matrix(net, self._views)
        found = per_class(matrix.iou, self._views.dataset.classes.names)
        self.iou = {name: value for name, value in found.items() if value is not None}
        return {"miou": matrix.miou, "pixel_accuracy": matrix.pixel_accuracy}

    def picture(self, net: nn.Module) -> NDArray[np.uint8]:
        """(H,W,3) uint8 RGB: pictures of val, what the network says of them, their truth."""
        dataset = self._views.dataset
        answers = net_answers(net, self._few)
        tiles = [tile(a.id, dataset.image(a.id), a.labels, self._few.mask(a.id)) for a in answers]
        return contact_sheet(tiles, dataset.classes)
