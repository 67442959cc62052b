"""What TensorBoard shows of a network with classes beside its losses: IoU of each class, a few pictures of val."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tsss_edge.drawing.sheet import contact_sheet, tile
from tsss_edge.files import reason
from tsss_edge.metrics import per_class
from tsss_edge.scoring import Views, class_matrix, net_answers

PICTURES = 6  # of val, spread over the list
LOG = logging.getLogger("tsss_edge")


class Board:
    """TensorBoard's file of a run, written at once and not by a thread, whose failure only a traceback would tell.

    Where it cannot be written (a full disk), one warning says so and the run goes on without it.
    """

    def __init__(self, out: Path, first_epoch: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._event, self._file = Event, None
        with self._or_without():
            self._file = _event_file(out / "tensorboard")
            self._write(first_epoch + 1, file_version="brain.Event:2")
            self._write(first_epoch + 1, session_log=SessionLog(status=SessionLog.START))  # hides what is trained again

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """A point of each curve."""
        from torch.utils.tensorboard.summary import scalar

        with self._or_without():
            for name, value in values.items():
                self._write(step, summary=scalar(name, value))  # type: ignore[no-untyped-call]

    def image(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """(H,W,3) uint8 RGB."""
        from torch.utils.tensorboard.summary import image

        with self._or_without():
            self._write(step, summary=image(name, picture, dataformats="HWC"))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the file; its last bytes may have no room either."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def _write(self, step: int, **content: Any) -> None:
        if self._file is not None:
            self._file.write(self._event(wall_time=time.time(), step=step, **content).SerializeToString())
            self._file.flush()

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            LOG.warning(f"TensorBoard's file cannot be written ({reason(error)}); the run goes on without it")
            self.close()


def _event_file(folder: Path) -> Any:
    """A new file of TensorBoard's records; it reads them in the order of their names."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
    return RecordWriter((folder / name).open("xb"))


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
