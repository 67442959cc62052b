"""Checkpoint + pictures -> what the reference says of each, as files: parity then runs where there is no PyTorch.

answers.json      the checkpoint's hash and description, and the hash of every picture
labels/ID.png     (H,W) uint8 label map at the picture's size, 255 where nothing was decided
cells/ID.png      (h,w) uint8, 255 where objectness is above 0; only of networks that have it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Reference, Struct, load_reference
from tsss_edge.backends import open_backend
from tsss_edge.data.ids import place
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.files import edge, read_json, sha256_file, write_json
from tsss_edge.scoring import Answer, Mask, backend_answers, pictures

FILE = "answers.json"


class AnswersFile(Struct, frozen=True):
    """`answers.json`. `pictures` are SHA-256 by id, of the files as they lie in the dataset."""

    checkpoint_sha256: str
    meta: CheckpointMeta
    runs_on: str
    objectness: bool
    pictures: dict[str, str]


class Answers(Struct, frozen=True):
    """A folder of answers: a reference for parity like a `Checkpoint`, whose `sha256` and `meta` these are."""

    path: Path
    recorded: AnswersFile

    @classmethod
    def load(cls, folder: Path) -> Answers:
        """Raises: ArtifactError: no answers there, or damaged."""
        return cls(path=folder, recorded=read_json(folder / FILE, AnswersFile))

    @property
    def sha256(self) -> str:
        return self.recorded.checkpoint_sha256

    @property
    def meta(self) -> CheckpointMeta:
        return self.recorded.meta

    @property
    def name(self) -> str:
        """What the report says runs here."""
        return f"recorded answers of {self.recorded.runs_on}"

    @property
    def classes(self) -> Classes:
        return self.meta.classes

    def recall(self, shown: Iterable[tuple[str, Mask]]) -> Iterator[Answer]:
        """What was said of each picture; the pictures themselves are not looked at.

        Raises: ArtifactError: nothing is recorded of a picture, or its file is damaged.
        """
        for image_id, _ in shown:
            yield self.of(image_id)

    def of(self, image_id: str) -> Answer:
        """Raises: ArtifactError: as `recall`."""
        if image_id not in self.recorded.pictures:
            raise ArtifactError(
                f"{self.path}: no answer for picture {image_id}; use the split that the kit was made for"
            )
        cells = _read(place(self.path / "cells", image_id, ".png")) // 255 if self.recorded.objectness else None
        return RecordedAnswer(image_id, _read(place(self.path / "labels", image_id, ".png")), cells, self.meta)

    def require_pictures(self, dataset: VocDataset, ids: Sequence[str]) -> None:
        """Raise ArtifactError unless the pictures are byte for byte those that the reference saw."""
        for image_id in ids:
            if self.recorded.pictures.get(image_id) != sha256_file(dataset.image_path(image_id)):
                raise ArtifactError(
                    f"{self.path}: the reference saw another picture {image_id} than {dataset.image_path(image_id)}; "
                    "use the data that came with the answers"
                )


class RecordedAnswer(Answer):
    """An `Answer` whose labels and cells are known; there are no outputs."""

    def __init__(self, image_id: str, labels: Mask, cells: Mask | None, meta: CheckpointMeta) -> None:
        frame_hw = (labels.shape[0], labels.shape[1])
        super().__init__(image_id, {}, frame_hw, meta.preprocess.place(frame_hw))
        self.__dict__.update(labels=labels, recorded_cells=cells)

    @property
    def cells(self) -> Mask | None:
        """(h,w), 1 where objectness was above 0; None where the network had no objectness output."""
        cells: Mask | None = self.__dict__["recorded_cells"]
        return cells


Compared: TypeAlias = Reference | Answers


def load_compared(model: Path | Compared) -> Compared:
    """A folder of answers, or a reference. Loaded ones pass. Raises: ArtifactError: missing, damaged, no reference."""
    if isinstance(model, Answers):
        return model
    if isinstance(model, Path) and (model / FILE).is_file():
        return Answers.load(model)
    return load_reference(model)


def record_answers(checkpoint: Checkpoint, dataset: VocDataset, split: str, folder: Path) -> None:
    """Run the checkpoint on a split and write its answers to the new `folder`.

    Raises: ArtifactError: the network gives NaN or infinity. DataError: a picture is missing or damaged.
    """
    ids = dataset.ids(split)
    with open_backend(checkpoint) as backend:
        objectness = any(spec.name == "objectness" for spec in backend.outputs)
        for name in ("labels", "cells") if objectness else ("labels",):
            (folder / name).mkdir(parents=True)
        for answer in backend_answers(backend, pictures(dataset, ids, "reference")):
            _write(answer, folder)
        runs_on = backend.name
    recorded = AnswersFile(
        checkpoint_sha256=checkpoint.sha256,
        meta=checkpoint.meta,
        runs_on=runs_on,
        objectness=objectness,
        pictures={image_id: sha256_file(dataset.image_path(image_id)) for image_id in ids},
    )
    write_json(folder / FILE, recorded)


def _write(answer: Answer, folder: Path) -> None:
    if not answer.finite:
        raise ArtifactError(f"the reference gives NaN or infinity on picture {answer.id}; use another checkpoint")
    _save(answer.labels, place(folder / "labels", answer.id, ".png"))
    if answer.cells is not None:
        _save(answer.cells * np.uint8(255), place(folder / "cells", answer.id, ".png"))


def _save(mask: Mask, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # an id may name a folder
    Image.fromarray(mask).save(path)


def _read(path: Path) -> Mask:
    with edge(path, "answer of the reference", "make the kit again"), Image.open(path) as image:
        return np.asarray(image, np.uint8)
