"""The targets that come with the package: readable, explained, and within the rules of their devices."""

from __future__ import annotations

import pytest

from tsss_edge.artifacts import Precision, Target
from tsss_edge.config import load_target, shared_folder

FOLDER = shared_folder("export")
NAMES = sorted(p.stem for p in FOLDER.glob("*.toml"))


def test_all_targets_are_there() -> None:
    assert NAMES == ["cpu", "datacenter", "jetson-agx-orin-dla", "jetson-orin", "jetson-thor", "rtx"]


@pytest.mark.parametrize("name", NAMES)
def test_target_keeps_the_rules(name: str) -> None:
    target = load_target(name)
    allowed: dict[str, set[Precision]] = {
        "openvino": {"int8", "bf16", "fp32"},
        "tensorrt": {"int8", "fp16", "fp32"},
        "tensorrt-rtx": {"int8", "fp16", "fp32"},
    }
    assert target.name == name and target.description
    assert set(target.precisions) <= allowed[target.backend]
    least, usual, most = target.batch
    assert 1 <= least <= usual <= most
    assert target.local == (not name.startswith("jetson"))
    if target.dla_core is not None:
        assert least == most, "DLA wants static shapes"
        assert target.head == "logits", "DLA has no x8 linear resize"


def test_readme_explains_every_target_and_every_key() -> None:
    text = (FOLDER / "README.md").read_text()
    assert [name for name in NAMES if f"| `{name}` |" not in text] == []
    assert [key for key in Target.__struct_fields__ if f"| `{key}` |" not in text] == []
