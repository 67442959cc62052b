"""The manifests of kubernetes/: valid by the published schemas, and what they run are commands that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typedlines import parse

yaml = pytest.importorskip("yaml")
FOLDER = Path(__file__).parents[2] / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_manifest_is_valid_by_the_schemas_of_kubernetes(path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    assert documents(path)
    for document in documents(path):
        for version in ("1.28", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)


def test_the_namespace_is_applied_before_what_is_in_it_and_no_claim_of_the_users_is_made() -> None:
    everything = [document for path in FILES for document in documents(path)]  # kubectl goes by file name
    assert everything[0]["kind"] == "Namespace"
    assert {document["metadata"]["namespace"] for document in everything[1:]} == {everything[0]["metadata"]["name"]}
    assert not {document["kind"] for document in everything} & {"Secret", "PersistentVolumeClaim"}
    steps = (FOLDER / "README.md").read_text()
    assert steps.index("apply -f kubernetes/00-namespace.yaml") < steps.index("create secret")


def container(file: str, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    (found,) = (d for d in documents(FOLDER / file) if d["kind"] == kind)
    return found, found["spec"]["template"]["spec"]["containers"][0]


def test_the_streams_run_a_command_that_exists() -> None:
    workload, stream = container("streams.yaml", "StatefulSet")
    words = [*stream["command"][1:], *stream["args"]]
    parse([word.replace("$(SHARD)", "0") for word in words])
    assert f"$(SHARD)/{workload['spec']['replicas']}" in words
    assert workload["spec"]["template"]["metadata"]["labels"] == workload["spec"]["selector"]["matchLabels"]


def test_ports_that_are_named_are_there() -> None:
    for file, kind in (("streams.yaml", "StatefulSet"), ("triton.yaml", "Deployment")):
        _, made = container(file, kind)
        named = {port["name"] for port in made["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            action = made[probe].get("httpGet") or made[probe]["tcpSocket"]
            assert action["port"] in named


def test_the_scrape_configuration_is_yaml_that_names_our_ports() -> None:
    (config,) = documents(FOLDER / "prometheus.yaml")
    jobs = yaml.safe_load(config["data"]["scrape.yaml"])["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["tsss-edge", "triton"]
    alerts = (FOLDER.parent / "monitoring/alerts.yml").read_text()
    assert set(re.findall(r'job="([^"]+)"', alerts)) == {"tsss-edge"}, (
        "what the alarms ask for is scraped under that name"
    )
    assert [job["relabel_configs"][0]["regex"] for job in jobs] == ["streams;web", "triton;metrics"]
