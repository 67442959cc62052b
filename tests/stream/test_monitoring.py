"""Alert rules, dashboard and runbook: every metric that they name is exposed, every alarm has its page, promtool agrees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from streamkit import MakeResult

from tsss_edge.artifacts import Classes
from tsss_edge.field.collector import CollectStatus
from tsss_edge.field.drift import Drift
from tsss_edge.field.rules import RolloutStatus
from tsss_edge.stream.prometheus import Metrics
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.status import LiveStatus

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "monitoring/alerts.yml"
NAME = re.compile(r"tsss_edge_[a-z_]+")


@pytest.fixture
def exposed(make_result: MakeResult) -> set[str]:
    """Names of all samples of a stream that has everything."""
    metrics, recorder = Metrics(), Recorder()
    live = LiveStatus(Classes(names=("background", "cat")), recorder)
    metrics.add("gate", live)
    result = make_result()
    result.engine, result.parity = "e", {"agreement": 0.9, "miou": 50.0}
    result.drift = Drift(raised=True, score=1.2, figure="unknown", since=1)
    result.collected = CollectStatus(frames=1, bytes=2, budget=3, disk_free=4)
    live.add(result)
    recorder.add(result)
    recorder.rollout = RolloutStatus(phase="shadow", old="e", new="n", new_sha256="", agreement=0.9)
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name for family in families for sample in family.samples}


def alarms() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS.read_text())


@pytest.mark.parametrize(
    "page", ["monitoring/alerts.yml", "monitoring/alerts_test.yml", "monitoring/dashboard.json", "docs/runbook.md"]
)
def test_every_metric_is_exposed(page: str, exposed: set[str]) -> None:
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed}
    named = set(NAME.findall((ROOT / page).read_text()))
    assert named
    assert not named - exposed - families


def test_every_alarm_has_a_chapter_in_the_runbook_and_the_other_way_round() -> None:
    chapters = re.findall(r"^## (\w+)", (ROOT / "docs/runbook.md").read_text(), flags=re.MULTILINE)
    assert chapters == alarms()
    linked = re.findall(r"runbook: docs/runbook\.md#(\w+)", ALERTS.read_text())
    assert linked == [name.lower() for name in alarms()]


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    board = json.loads((ROOT / "monitoring/dashboard.json").read_text())
    assert {"uid", "title", "schemaVersion", "panels", "templating"} <= set(board)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    spots = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]}
    assert len(spots) == len(ids) and all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in board["panels"])
    assert all(target["expr"] for panel in board["panels"] for target in panel["targets"])


@pytest.mark.parametrize("command", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_accepts_the_rules(command: list[str]) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("no promtool (apt-get install prometheus)")
    result = subprocess.run([promtool, *command], cwd=ROOT / "monitoring", capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
