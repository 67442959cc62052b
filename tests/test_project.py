"""The project itself: light imports, no cycles, no upward imports, the wheel's content."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tsss_edge"
HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "pycuda", "openvino", "onnx", "onnxruntime", "scipy", "numba", "fastapi")

# From the ground up: a room may import only the rooms that stand before it, lazy and TYPE_CHECKING imports included.
ROOMS = (
    *("errors", "disk", "files", "seals", "artifacts", "signing", "config", "machine", "metrics", "ranks"),
    *("data", "models", "kernels", "drawing", "backends", "onnxgraph", "segmentation", "segment"),
    *("calib", "export", "frozen", "scoring", "label", "train"),
    *("field", "parity", "stream", "review", "bench", "deploy", "inspection", "doctor", "reproduce", "demo"),
    *("api", "cli", "__main__"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if "_share" not in path.parts}


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules of the package that a file imports. `top_level_only`: those that run at import, not lazy or for types."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if top_level_only and (lazy or for_types):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name in MODULES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_module_is_in_a_room() -> None:
    unknown = {room(m) for m in MODULES} - {"", *ROOMS}
    assert not unknown, f"give these a place in ROOMS: {sorted(unknown)}"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room(m)))
def test_no_upward_import(module: str) -> None:
    own = ROOMS.index(room(module))
    upward = {name for name in imports_of(MODULES[module]) if room(name) and ROOMS.index(room(name)) > own}
    assert not upward


def test_no_import_cycle() -> None:
    graph = {m: imports_of(p, top_level_only=True) - {m} for m, p in MODULES.items()}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for other in graph[module]:
                walk(other, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_no_module_imports_a_private_name() -> None:
    private = [
        f"{module}: {node.module}.{alias.name}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tsss_edge")
        for alias in node.names
        if alias.name.startswith("_") and alias.name != "__version__"
    ]
    assert not private


def test_one_module_decodes_json() -> None:
    decoders = re.compile(r"\b(?:msgspec\.json\.(?:decode|Decoder)|json\.loads?)\b")
    assert [name for name, path in MODULES.items() if decoders.search(path.read_text())] == ["tsss_edge.files"]


def test_file_names_say_what_they_hold() -> None:
    """No base name stands twice: whoever looks for a file finds one. (CLI files are named after their commands.)"""
    names = Counter(path.stem for module, path in MODULES.items() if room(module) != "cli" and path.stem != "__init__")
    assert not [name for name, count in names.items() if count > 1]


def test_class_names_are_unique() -> None:
    names = Counter(
        node.name
        for path in MODULES.values()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)


HIDE = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {HEAVY!r}:
            raise ImportError(name + ' is hidden by the test')
sys.meta_path.insert(0, Hide())
"""


def test_help_needs_no_heavy_module() -> None:
    code = HIDE + "sys.argv = ['tsss-edge', '--help']\nfrom tsss_edge.cli import main\nmain()"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "build-engine" in result.stdout


@pytest.mark.parametrize("module", ["tsss_edge.cli", "tsss_edge.artifacts", "tsss_edge.config", "tsss_edge.backends"])
def test_light_modules_import_with_heavy_ones_hidden(module: str) -> None:
    result = run_python(HIDE + f"import {module}")
    assert result.returncode == 0, result.stderr


def test_wheel_holds_package_targets_and_calibration_sets(tmp_path: Path) -> None:
    code = f"import hatchling.build as b; print(b.build_wheel({str(tmp_path)!r}))"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    expected = {f"{name.relative_to(ROOT)}" for name in PACKAGE.rglob("*.py")}
    expected |= {f"tsss_edge/_share/export/{p.name}" for p in (ROOT / "export").glob("*.toml")}
    expected |= {f"tsss_edge/_share/calib/{p.name}" for p in (ROOT / "calib").glob("*.toml")}
    assert expected <= names
    assert not {n for n in names if n.startswith(("tests/", "scripts/", "docs/"))}
