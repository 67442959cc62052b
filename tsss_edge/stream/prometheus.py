"""Everything that Prometheus scrapes, with the camera and the engine as labels; by prometheus_client.

What belongs to a mask (frames, ages, stages) is counted as it comes, under the engine that made it. What belongs to a source
is read from its status when somebody asks. A number that is not known is left out, never shown as 0. Base units: seconds, 0-1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from tsss_edge.stream.field_metrics import field_metrics
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.status import STATES, LiveStatus, Status

__all__ = ["CONTENT_TYPE", "Metrics"]

# A frame of 60 a second is 17 ms apart; an age beyond some seconds is an outage, whatever its length.
AGE_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
STAGE_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BY_MASK = ("camera", "engine")


class Metrics:
    """The numbers of one process. `add` a camera; `text` is what /metrics answers."""

    def __init__(self) -> None:
        self._cameras: dict[str, LiveStatus] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._frames = Counter("tsss_edge_frames", "Frames with a mask.", BY_MASK, registry=self._registry)
        self._age = self._histogram("frame_age_seconds", "From capture to mask.", BY_MASK, AGE_S)
        self._latency = self._histogram("latency_seconds", "Sum of the stages of a frame.", BY_MASK, AGE_S)
        self._stage = self._histogram("stage_seconds", "Time in a stage.", (*BY_MASK, "stage"), STAGE_S)
        self._registry.register(self)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"tsss_edge_{name}", text, labels, buckets=buckets, registry=self._registry)

    def add(self, camera: str, live: LiveStatus) -> None:
        """Show the numbers of one camera, and count its masks from now on."""
        self._cameras[camera] = live
        live.recorder.observers.append(partial(self._observe, camera))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def _observe(self, camera: str, result: FrameResult) -> None:
        self._frames.labels(camera, result.engine).inc()
        self._age.labels(camera, result.engine).observe(result.age_ms / 1000)
        latency_ms = sum(value for name, value in result.stages_ms.items() if name != "encode")  # as the report's
        self._latency.labels(camera, result.engine).observe(latency_ms / 1000)
        for name, value in result.stages_ms.items():
            self._stage.labels(camera, result.engine, name).observe(value / 1000)

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client: what is read from the status of every camera now."""
        statuses = {camera: live.status() for camera, live in self._cameras.items()}
        yield _counter(
            "frames_dropped", "Frames of the source without a mask.", {c: s.dropped for c, s in statuses.items()}
        )
        yield _counter("frames_thinned", "Frames left out as asked.", {c: s.thinned for c, s in statuses.items()})
        yield _counter(
            "source_reconnects", "Times the source came back.", {c: s.reconnects for c, s in statuses.items()}
        )
        yield _gauge("fps", "Masks a second over the last two seconds.", {c: s.fps for c, s in statuses.items()})
        yield _gauge("parity_agreement_ratio", "Pixel agreement with the reference, last check.",
                     {c: s.agreement for c, s in statuses.items()})  # fmt: skip
        yield _gauge("live_miou_percent", "mIoU against known truth.", {c: s.miou for c, s in statuses.items()})
        yield from (_areas(statuses), _states(statuses))
        yield from field_metrics(statuses)


def _counter(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"tsss_edge_{name}", text, labels=("camera",))
    for camera, value in values.items():
        family.add_metric((camera,), value)
    return family


def _gauge(name: str, text: str, values: Mapping[str, float | None]) -> Metric:
    family = GaugeMetricFamily(f"tsss_edge_{name}", text, labels=("camera",))
    for camera, value in values.items():
        if value is not None:
            family.add_metric((camera,), value)
    return family


def _areas(statuses: Mapping[str, Status]) -> Metric:
    family = GaugeMetricFamily(
        "tsss_edge_class_area_ratio", "Share of the newest frame, by class.", labels=("camera", "class")
    )
    for camera, status in statuses.items():
        for name, share in status.areas.items():
            family.add_metric((camera, name), share)
    return family


def _states(statuses: Mapping[str, Status]) -> Metric:
    family = GaugeMetricFamily(
        "tsss_edge_source_state", "1 for the state the source is in.", labels=("camera", "state")
    )
    for camera, status in statuses.items():
        for state in STATES:
            family.add_metric((camera, state), float(state == status.state))
    return family
