"""The lock file and the list of parts agree with what the project asks for."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NEWER = {"python_version": "3.11", "python_full_version": "3.11.5"}


def versions(lines: list[str]) -> dict[str, str]:
    wanted = [Requirement(line) for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier) for r in wanted if r.marker is None or r.marker.evaluate(NEWER)}


def test_the_lock_is_of_these_constraints() -> None:
    locked = versions(re.findall(r"^([A-Za-z][^\\\n]+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
    wanted = versions((ROOT / "constraints.txt").read_text().splitlines())
    del wanted["torch"]
    assert locked == wanted, "run `make lock`"


def test_every_package_of_the_lock_has_hashes() -> None:
    blocks = re.split(r"\n(?=[A-Za-z])", (ROOT / "requirements.lock").read_text().split("\n", 1)[1])
    assert len(blocks) > 50 and all("--hash=sha256:" in block for block in blocks)


def test_the_build_back_end_is_the_locked_one() -> None:
    (pinned,) = re.findall(r'requires = \["(hatchling==[^"]+)"\]', (ROOT / "pyproject.toml").read_text())
    assert f"\n{pinned} \\" in (ROOT / "requirements.lock").read_text()
