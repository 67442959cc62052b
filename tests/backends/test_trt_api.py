"""The table of TensorRT names against the surfaces recorded from real bindings (scripts/record_trt_api.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import tsss_edge
from tsss_edge.backends.trt_api import USED, Trt, expected, load, parse_version
from tsss_edge.errors import UnavailableError

SURFACES = sorted((Path(__file__).parent / "trt_api").glob("*.json"))


def flavour_and_version(path: Path) -> tuple[str, tuple[int, ...]]:
    flavour = "tensorrt-rtx" if path.stem.startswith("rtx-") else "tensorrt"
    return flavour, parse_version(path.stem.removeprefix("rtx-"))


def exists(names: dict[str, list[str] | None], name: str) -> bool:
    owner, _, attribute = name.partition(".")
    return owner in names and (not attribute or attribute in (names[owner] or []))


def test_the_range_of_versions_is_recorded() -> None:
    assert [p.stem for p in SURFACES] == ["10.16.0", "10.3.0", "11.4.0", "8.5.3", "8.6.1", "rtx-1.7.1"]


@pytest.mark.parametrize("path", SURFACES, ids=lambda p: p.stem)
def test_table_agrees_with_the_recorded_surface(path: Path) -> None:
    names = json.loads(path.read_text())["names"]
    flavour, version = flavour_and_version(path)
    wrong = {n: exists(names, n) for n in USED if exists(names, n) != expected(n, flavour, version[:2])}
    assert wrong == {}, "names whose existence differs from the table"


def test_recorded_rtx_surface_is_the_installed_one() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    if parse_version(module.__version__)[:3] != (1, 7, 1):
        pytest.skip(f"recorded for 1.7.1, installed is {module.__version__}")
    names = json.loads(SURFACES[-1].read_text())["names"]
    assert {n for n in USED if exists(names, n)} == {n for n in USED if _has(module, n)}


def _has(module: object, name: str) -> bool:
    owner, _, attribute = name.partition(".")
    return hasattr(module, owner) and (not attribute or hasattr(getattr(module, owner), attribute))


def test_every_trt_get_in_the_code_is_in_the_table() -> None:
    root = Path(tsss_edge.__file__).parent
    asked = {n for p in root.rglob("*.py") for n in re.findall(r'trt\.(?:get|has)\("([^"]+)"\)', p.read_text())}
    assert len(asked) > 10
    assert asked <= set(USED)


def test_typing_follows_the_version() -> None:
    def at(*version: int) -> tuple[bool, bool]:
        trt = Trt(None, "tensorrt", version)
        return trt.always_strong, trt.never_strong

    assert at(8, 5, 3) == at(8, 6, 1) == (False, True)
    assert at(10, 3, 0) == at(10, 11, 0) == (False, False)
    assert at(10, 12, 0) == at(11, 4, 0) == (True, False)
    rtx = Trt(None, "tensorrt-rtx", (1, 7, 1))
    assert (rtx.always_strong, rtx.never_strong) == (True, False)
    assert str(rtx) == "TensorRT-RTX 1.7.1"


def test_version_texts() -> None:
    assert parse_version("10.16.0.72") == (10, 16, 0, 72)
    assert parse_version("8.6.1.post1") == (8, 6, 1)


def test_missing_tensorrt_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match=r"pip install 'tsss-edge\[tensorrt\]'"):
        load("tensorrt")
