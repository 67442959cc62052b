"""Example 07: its files are well-formed, what they mount exists, and alarms and dashboard are those of monitoring/."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "examples/07_grafana"


def test_what_is_mounted_exists_and_arrives_where_it_is_looked_for() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    mounts = {
        target: FOLDER / source
        for service in services.values()
        for source, target, _ in (volume.split(":") for volume in service["volumes"])
    }
    assert [path.name for path in mounts.values() if not path.exists()] == ["token"], "the user writes that one"
    prometheus = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert f"/etc/prometheus/{prometheus['rule_files'][0]}" in mounts
    (job,) = prometheus["scrape_configs"]
    assert job["job_name"] == "tsss-edge", "the alarms ask for this name"
    assert job["authorization"]["credentials_file"] in mounts
    (provider,) = yaml.safe_load((FOLDER / "dashboards.yml").read_text())["providers"]
    assert any(Path(target).parent == Path(provider["options"]["path"]) for target in mounts)


def test_the_dashboard_takes_the_data_source_that_is_provisioned() -> None:
    dashboard = json.loads((FOLDER.parents[1] / "monitoring/dashboard.json").read_text())
    (source,) = yaml.safe_load((FOLDER / "datasources.yml").read_text())["datasources"]
    chosen = {panel["datasource"]["type"] for panel in dashboard["panels"]}
    assert chosen == {source["type"]} and source["isDefault"]
