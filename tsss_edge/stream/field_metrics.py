"""Drift and rollout of every camera -> Prometheus metrics, labelled by camera."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tsss_edge.field.rules import PHASES
from tsss_edge.stream.status import Status


def field_metrics(statuses: Mapping[str, Status]) -> Iterator[Metric]:
    """What is known of drift and of a shadow engine; nothing for a camera without."""
    yield from _drift(statuses)
    yield from _rollout(statuses)
    yield from _collected(statuses)


def _drift(statuses: Mapping[str, Status]) -> Iterator[Metric]:
    raised = GaugeMetricFamily("tsss_edge_drift_raised", "1 while frames differ from the profile.", labels=("camera",))
    score = GaugeMetricFamily(
        "tsss_edge_drift_score_ratio", "Distance from the profile over its limit.", labels=("camera", "figure")
    )
    alarms = CounterMetricFamily("tsss_edge_drift_alarms", "Times that drift was raised.", labels=("camera",))
    for camera, status in statuses.items():
        if (drift := status.drift) is not None:
            raised.add_metric((camera,), float(drift.raised))
            score.add_metric((camera, drift.figure), drift.score)
            alarms.add_metric((camera,), drift.alarms)
    yield from (raised, score, alarms)


def _rollout(statuses: Mapping[str, Status]) -> Iterator[Metric]:
    phase = GaugeMetricFamily(
        "tsss_edge_rollout_phase", "1 for the phase of the shadow engine.", labels=("camera", "engine", "phase")
    )
    agreement = GaugeMetricFamily(
        "tsss_edge_shadow_agreement_ratio", "Mean agreement of both engines.", labels=("camera", "engine")
    )
    failures = CounterMetricFamily(
        "tsss_edge_rollout_failures", "Frames on which the new engine failed.", labels=("camera", "engine")
    )
    for camera, status in statuses.items():
        if (rollout := status.rollout) is not None:
            for name in PHASES:
                phase.add_metric((camera, rollout.new, name), float(name == rollout.phase))
            if rollout.agreement is not None:
                agreement.add_metric((camera, rollout.new), rollout.agreement)
            failures.add_metric((camera, rollout.new), rollout.failures)
    yield from (phase, agreement, failures)


def _collected(statuses: Mapping[str, Status]) -> Iterator[Metric]:
    names = {
        "collected_frames": ("frames", "Frames in the folder of --collect."),
        "collected_bytes": ("bytes", "Size of the collected frames."),
        "collected_budget_bytes": ("budget", "What --budget allows."),
        "disk_free_bytes": ("disk_free", "Left on the disk of the collected frames."),
    }
    for name, (field, text) in names.items():
        family = GaugeMetricFamily(f"tsss_edge_{name}", text, labels=("camera",))
        for camera, status in statuses.items():
            if status.collected is not None:
                family.add_metric((camera,), getattr(status.collected, field))
        yield family
