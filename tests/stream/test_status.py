"""Prometheus text, against a hand-made status."""

from __future__ import annotations

import re

from tsss_edge.stream.status import History, RecentTimes, Status, prometheus_text

EMPTY = History(t=[], fps=[], latency_ms=[], age_ms=[], dropped=[], agreement=[], miou=[])


def status(**changes: object) -> Status:
    values: dict[str, object] = {
        "state": "STALLED", "size": (64, 48), "uptime_s": 1.0, "frames": 10, "dropped": 2, "reconnects": 1, "fps": 29.97,
        "source_fps": 30.0, "latency_ms": None, "age_ms": RecentTimes(now=10, p50=10, p95=20, p99=30),
        "stages_ms": {"infer": 2.5}, "areas": {'a "quoted"\\name': 0.25}, "agreement": None, "miou": None, "history": EMPTY,
    }  # fmt: skip
    return Status(**{**values, **changes})  # type: ignore[arg-type]


def test_values_and_units() -> None:
    lines = prometheus_text(status()).splitlines()
    assert "tsss_edge_frames_total 10" in lines
    assert "tsss_edge_fps 29.97" in lines
    assert 'tsss_edge_frame_age_seconds{quantile="0.99"} 0.03' in lines
    assert 'tsss_edge_stage_seconds{stage="infer"} 0.0025' in lines
    assert 'tsss_edge_class_area_ratio{class="a \\"quoted\\"\\\\name"} 0.25' in lines
    assert [line[-1] for line in lines if line.startswith("tsss_edge_source_state")] == ["0", "0", "1", "0", "0", "0"]


def test_what_is_not_known_is_left_out() -> None:
    text = prometheus_text(status())
    assert "agreement" not in text and "miou" not in text and "latency_seconds" not in text
    assert "tsss_edge_parity_agreement_ratio 0.5" in prometheus_text(status(agreement=0.5))


def test_every_line_is_in_the_format() -> None:
    sample = re.compile(r'[a-z_]+(\{[a-z]+="(?:[^"\\]|\\.)*"\})? [-+0-9.e]+')
    text = prometheus_text(status(agreement=0.5, miou=61.5))
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line), line
