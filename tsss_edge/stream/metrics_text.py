"""Live numbers -> Prometheus text (exposition format 0.0.4), in base units: seconds, ratios 0-1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tsss_edge.stream.web.hub import Percentiles, Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("OPEN", "STREAMING", "STALLED", "RECONNECTING", "FAILED", "ENDED")

Labels = Mapping[str, str]


def prometheus_text(status: Status) -> str:
    """One family a number; a number that is not known is left out, never shown as 0."""
    lines: list[str] = []
    add = lines.extend
    add(_family("frames_total", "counter", "Frames with a mask.", [({}, status.frames)]))
    add(_family("frames_dropped_total", "counter", "Frames of the source without a mask.", [({}, status.dropped)]))
    add(_family("source_reconnects_total", "counter", "Times the source came back.", [({}, status.reconnects)]))
    add(_family("fps", "gauge", "Masks a second over the last two seconds.", [({}, status.fps)]))
    add(_percentiles("frame_age_seconds", "From capture to mask.", status.age_ms))
    add(_percentiles("latency_seconds", "Sum of the stages of a frame.", status.latency_ms))
    stages = [({"stage": name}, value / 1000) for name, value in status.stages_ms.items()]
    add(_family("stage_seconds", "gauge", "Time in a stage, newest frame.", stages))
    areas = [({"class": name}, value) for name, value in status.areas.items()]
    add(_family("class_area_ratio", "gauge", "Share of the frame, by class.", areas))
    states = [({"state": name}, float(name == status.state)) for name in STATES]
    add(_family("source_state", "gauge", "1 for the state the source is in.", states))
    add(_optional("parity_agreement_ratio", "Pixel agreement with the reference, last check.", status.agreement))
    add(_optional("live_miou_percent", "mIoU against known truth (synthetic sources).", status.miou))
    return "\n".join(lines) + "\n"


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]) -> list[str]:
    rows = [f"tsss_edge_{name}{_labels(labels)} {value:.12g}" for labels, value in samples]
    return [f"# HELP tsss_edge_{name} {text}", f"# TYPE tsss_edge_{name} {kind}", *rows] if rows else []


def _percentiles(name: str, text: str, values: Percentiles | None) -> list[str]:
    if values is None:
        return []
    samples = [
        ({"quantile": q}, v / 1000) for q, v in (("0.5", values.p50), ("0.95", values.p95), ("0.99", values.p99))
    ]
    return _family(name, "gauge", text, samples)


def _optional(name: str, text: str, value: float | None) -> list[str]:
    return [] if value is None else _family(name, "gauge", text, [({}, value)])


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{k}="{_escape(v)}"' for k, v in labels.items()) + "}" if labels else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
