"""Prometheus text: labels of camera and engine, real histograms, nothing that is not known."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from streamkit import MakeResult

from tsss_edge.artifacts import Classes
from tsss_edge.stream.prometheus import Metrics
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.status import LiveStatus

CLASSES = Classes(names=("background", 'a "quoted"\\name'))


class Camera:
    """A source with a state and counts."""

    live, fps, size_hw, length, state = True, 30.0, (48, 64), None, "STALLED"
    dropped, thinned, reconnects = 4, 2, 1

    def read(self, out: object = None) -> None:
        return None

    def close(self) -> None:
        """Nothing."""


@pytest.fixture
def samples(make_result: MakeResult) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Two results of one engine and one of another at camera "gate", none at "yard"; as a scraper reads them."""
    metrics = Metrics()
    recorder = Recorder()
    gate = LiveStatus(CLASSES, recorder, Camera())
    metrics.add("gate", gate)
    metrics.add("yard", LiveStatus(CLASSES, Recorder(), Camera()))
    for index, engine in enumerate(("old", "old", "new")):
        result = make_result(index)
        result.engine = engine
        result.age_ms = 40.0 * (index + 1)
        result.stages_ms["encode"] = 80.0
        gate.add(result)
        recorder.add(result)
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def test_masks_are_counted_under_the_engine_that_made_them(samples: dict[object, float]) -> None:
    assert samples["tsss_edge_frames_total", labels(camera="gate", engine="old")] == 2
    assert samples["tsss_edge_frames_total", labels(camera="gate", engine="new")] == 1
    assert not [key for key in samples if key[0] == "tsss_edge_frames_total" and ("camera", "yard") in key[1]]  # type: ignore[index]


def test_ages_are_a_histogram(samples: dict[object, float]) -> None:
    old = {"camera": "gate", "engine": "old"}
    name = "tsss_edge_frame_age_seconds"
    counts = [samples[f"{name}_bucket", labels(**old, le=le)] for le in ("0.03", "0.05", "0.1", "+Inf")]
    assert counts == [0, 1, 2, 2]
    assert samples[f"{name}_sum", labels(**old)] == pytest.approx(0.12)
    assert samples["tsss_edge_stage_seconds_count", labels(**old, stage="infer")] == 2
    assert samples["tsss_edge_latency_seconds_sum", labels(**old)] == pytest.approx(0.003)  # encoding is no part of it


def test_what_belongs_to_the_source_has_its_camera(samples: dict[object, float]) -> None:
    for camera in ("gate", "yard"):  # a source that gets no mask at all shows its drops too
        assert samples["tsss_edge_frames_dropped_total", labels(camera=camera)] == 4
        assert samples["tsss_edge_frames_thinned_total", labels(camera=camera)] == 2
        assert samples["tsss_edge_source_state", labels(camera=camera, state="STALLED")] == 1
        assert samples["tsss_edge_source_state", labels(camera=camera, state="STREAMING")] == 0
    share = samples["tsss_edge_class_area_ratio", labels(camera="gate", **{"class": CLASSES.names[1]})]
    assert share == 0.5


def test_a_lost_engine_is_the_state_of_a_camera_that_streams() -> None:
    class Streaming(Camera):
        state = "STREAMING"

    states = ["RECONNECTING", "READY"]
    for source, expected in ((Streaming(), ["ENGINE_LOST", "STREAMING"]), (Camera(), ["STALLED", "STALLED"])):
        told = [LiveStatus(CLASSES, Recorder(), source, lambda state=state: state).state for state in states]  # type: ignore[misc]
        assert told == expected


def test_what_is_not_known_is_left_out(samples: dict[object, float]) -> None:
    names = {key[0] for key in samples}  # type: ignore[index]
    assert "tsss_edge_parity_agreement_ratio" not in names and "tsss_edge_live_miou_percent" not in names
