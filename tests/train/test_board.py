"""TensorBoard's file: what a run writes is read there, a resumed run hides what it trains again, a full disk ends nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from tsss_edge.train import board
from tsss_edge.train.board import Board


def test_a_resumed_run_hides_what_it_trains_again(tmp_path: Path) -> None:
    for first, values in ((0, (1.0, 2.0, 3.0)), (1, (20.0, 30.0))):
        run = Board(tmp_path, first)
        for step, value in enumerate(values, first + 1):
            run.scalars({"loss": value}, step)
        run.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [(point.step, point.value) for point in shown.Scalars("loss")] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_a_full_disk_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(board, "_event_file", lambda folder: RecordWriter(Path("/dev/full").open("wb")))  # noqa: SIM115
    with caplog.at_level(logging.WARNING):
        run = Board(tmp_path, 0)
        run.scalars({"loss": 1.0}, 1)
        run.close()
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard's file cannot be written ([Errno 28] No space left on device); the run goes on without it"
    ]
