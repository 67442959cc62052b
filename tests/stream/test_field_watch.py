"""Drift and collection in the loop: what JSON lines, report, page and metrics say, and what another engine changes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fieldkit import collector
from loopkit import CLASSES, PREPROCESS, Pictures, Seen, fake

from tsss_edge.artifacts import Classes, FieldProfile, Placement, Preprocess
from tsss_edge.field.drift import WINDOW
from tsss_edge.field.figures import AREA
from tsss_edge.stream import field_watch
from tsss_edge.stream.field_watch import FieldWatch
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.sinks import JsonLinesSink
from tsss_edge.stream.watch import Checks
from tsss_edge.stream.web import open_web

CATS = {AREA + "cat": tuple(np.linspace(0, 0.1, 65).tolist())}  # a tenth of the frame at most
PROFILE = FieldProfile(pictures=500, quantiles=CATS)


def watched(frames: int, tmp_path: Path) -> tuple[FieldWatch, Recorder, list[dict[str, object]]]:
    """The loop over pictures of which every fourth is a cat all over."""
    backend, recorder = fake(), Recorder()
    field = FieldWatch(backend, {"e": PROFILE}, live=False)
    sink = JsonLinesSink(str(tmp_path / "o.jsonl"), CLASSES)
    run(Pictures(frames), backend, [sink], recorder, checks=Checks(field=field), engine="e")
    sink.close()
    return field, recorder, [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]


def test_drift_in_json_lines_report_and_status_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    field, recorder, lines = watched(WINDOW + 50, tmp_path)
    assert "drift" not in lines[0] and lines[0]["engine"] == "e"
    last = lines[-1]["drift"]
    assert isinstance(last, dict) and last["raised"] and last["figure"] == AREA + "cat"
    assert field.report is not None and len(field.report.alarms) == 1
    alarm = field.report.alarms[0]
    assert WINDOW <= alarm.raised < WINDOW + 30 and alarm.cleared is None
    assert all(index % 4 == 1 for index in alarm.examples)  # the cats
    assert "area of cat 0.050 -> 0.2" in caplog.text
    assert recorder.drift is not None and recorder.drift.raised


def test_the_page_shows_drift_with_its_frames_and_metrics_count_it(tmp_path: Path) -> None:
    get = partial(httpx.get, timeout=20)
    field, recorder, _ = watched(WINDOW + 50, tmp_path)
    page = open_web("0", classes=CLASSES, recorder=recorder, example=field.example)
    try:
        status = get(f"{page.url}api/status").json()
        frame = status["drift"]["examples"][0]
        assert get(f"{page.url}api/drift/{frame}.jpg").content[:2] == b"\xff\xd8"
        assert get(f"{page.url}api/drift/999999.jpg").status_code == 404
        metrics = get(f"{page.url}metrics").text
        assert 'tsss_edge_drift_raised{camera=""} 1' in metrics
        assert 'tsss_edge_drift_alarms_total{camera=""} 1' in metrics
    finally:
        page.close()


def test_a_camera_is_sampled_once_a_second() -> None:
    field = FieldWatch(fake(), {"e": PROFILE}, live=True)
    labels = np.zeros((48, 80), np.uint8)
    for n in range(100):  # ten a second
        field.add(FrameResult(Frame(np.zeros((48, 80, 3), np.uint8), n, n / 10), labels, None, None))
    assert field.samples == 10


def test_another_engine_is_compared_with_its_own_profile() -> None:
    more = Classes(names=(*CLASSES.names, "sheep"))
    field = FieldWatch(fake(), {"old": PROFILE, "new": None}, live=False)
    labels = np.full((48, 80), 4, np.uint8)
    for n in range(3):
        result = FrameResult(Frame(np.zeros((48, 80, 3), np.uint8), n, 0.0), labels, None, None)
        result.engine, result.classes = "new", more
        field.add(result)
    assert field.report is None  # no profile, no opinion


def test_what_was_raised_stays_in_the_report_after_an_engine_without_a_profile(tmp_path: Path) -> None:
    field, _, _ = watched(WINDOW + 50, tmp_path)
    before = field.report
    assert before is not None and before.alarms
    result = FrameResult(Frame(np.zeros((48, 80, 3), np.uint8), 10_000, 0.0), np.zeros((48, 80), np.uint8), None, None)
    result.engine, result.classes = "other", CLASSES
    field.add(result)
    assert field.report is not None and field.report.alarms == before.alarms


def test_collecting_from_the_loop_without_features(tmp_path: Path) -> None:
    kept = collector(tmp_path / "k", period_s=2.0)
    backend = fake(objectness=True)
    field = FieldWatch(backend, {"e": None}, live=False, collector=kept)
    run(Pictures(8), backend, [Seen()], Recorder(), checks=Checks(field=field), engine="e")
    field.close()
    frames = sorted(entry.frame for entry in kept.kept.entries.values())
    assert len(frames) == 4  # the classes differ, and later frames repeat them
    assert PREPROCESS.size_hw == (64, 96)


def test_an_engine_that_took_over_is_measured_and_kept_by_its_own_input_and_names(tmp_path: Path) -> None:
    other = Classes(names=("background", "dog", "cat"))
    wide = Preprocess(size_hw=(32, 64), fit="letterbox")
    kept = collector(tmp_path / "field", period_s=1.0)
    field = FieldWatch(fake(), {"old": None, "new": PROFILE}, live=False, collector=kept, preprocess={"new": wide})
    labels = np.full((48, 80), 1, np.uint8)  # dog, as the new engine counts
    frame = Frame(np.zeros((48, 80, 3), np.uint8), 0, 0.0)
    result = FrameResult(frame, labels, None, None, classes=other, engine="new")
    places: list[Placement] = []
    look = field_watch.Meter.look

    def note(self: field_watch.Meter, *seen: Any) -> object:
        places.append(seen[-1])
        return look(self, *seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(field_watch.Meter, "look", note)
        field.add(result)
    field.close()
    assert places == [wide.place((48, 80))]
    (entry,) = kept.kept.entries.values()
    assert entry.engine == "new"
    assert [CLASSES.names[i] for i in entry.classes] == ["dog"]
