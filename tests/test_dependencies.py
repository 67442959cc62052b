"""What pip takes on which machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ORIN = {"platform_release": "5.15.136-tegra", "platform_machine": "aarch64", "sys_platform": "linux"}
GRAVITON = {"platform_release": "6.1.0-28-cloud-arm64", "platform_machine": "aarch64", "sys_platform": "linux"}


@pytest.mark.parametrize(("machine", "names"), [(ORIN, set()), (GRAVITON, {"opencv-python", "torch", "tensorrt"})])
def test_a_jetson_keeps_what_its_system_has_and_no_other_arm_machine_does(
    machine: dict[str, str], names: set[str]
) -> None:
    """PyPI's OpenCV has no GStreamer and shadows JetPack's, whose own was built for NumPy 1."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = [text for name in ("train", "tensorrt") for text in project["optional-dependencies"][name]]
    wanted = [Requirement(text) for text in (*project["dependencies"], *extras)]
    taken = [r for r in wanted if r.marker is None or r.marker.evaluate(machine)]
    assert {r.name for r in taken} & {"opencv-python", "torch", "tensorrt"} == names
    (numpy,) = [r for r in taken if r.name == "numpy"]
    assert numpy.specifier.contains("1.26.4") and numpy.specifier.contains("2.2.6") == (machine is GRAVITON)
