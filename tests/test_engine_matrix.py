"""The page of the engine matrix: what it counts, and that a plan unlike the stock one stops it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_matrix", SCRIPTS / "engine_matrix.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(shapes: str, differs: int | None, itself: int) -> dict[str, Any]:
    return {
        "network": "edge-s", "head": "both", "objectness": True, "shapes": shapes, "precision": "int8", "build_s": 1.26,
        "plan_mib": 4.2, "convolutions": {"fp16": 2, "int8": 20}, "capabilities": ["8.0"], "differs_from_stock": differs,
        "stock_differs_from_itself": itself, "stock_runtime": "no driver", "version": "1.7.1.116",
    }  # fmt: skip


def report(*rows: dict[str, Any]) -> dict[str, Any]:
    checks = {"damaged engines and records, each refused in one line": {"passed": 21, "failed": 0, "skipped": 0}}
    repeated = [{"network": "edge-s", "precision": "fp16", "build_s": [0.4, 0.33, 0.35]}]
    return {
        "repeated": repeated,
        "command": "c",
        "date": "d",
        "machine": "m",
        "size": 512,
        "engines": list(rows),
        "checks": checks,
    }


def test_page_counts_what_is_the_same(matrix: ModuleType) -> None:
    text = matrix.page(report(row("static", 0, 0), row("profile", 35, 31), row("profile", None, 0)))
    assert "**1 of 1** plans of static shapes are the same byte for byte" in text
    assert "two stock builds differ in 1 of 2 cases, ours and a stock build in 2 of 2" in text
    assert "refused in one line: 21 passed, 0 failed, 0 skipped (`tests/export/test_corruption.py`)" in text
    assert "| edge-s | both | yes | static | int8 | 1.3 | 4.20 | 2 fp16, 20 int8 |" in text


def test_a_static_plan_unlike_the_stock_one_stops_the_page(matrix: ModuleType) -> None:
    with pytest.raises(AssertionError, match="a plan unlike the stock one"):
        matrix.page(report(row("static", 3, 0)))


def test_the_plain_script_imports_nothing_of_ours() -> None:
    text = (SCRIPTS / "plain_tensorrt_rtx.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= {"__future__", "json", "sys", "pathlib", "typing", "tensorrt_rtx"}
