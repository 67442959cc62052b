"""The project itself: light imports, no cycles, no upward imports, the wheel's content, commands in the pages."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tsss_edge"
HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "pycuda", "openvino", "onnx", "onnxruntime", "scipy", "numba", "fastapi")

# A module may import modules of its own or a lower rank. Longest prefix wins.
RANKS = {
    "tsss_edge": 0,
    "tsss_edge.errors": 0,
    "tsss_edge.files": 1,
    "tsss_edge.artifacts": 1,
    "tsss_edge.machine": 2,
    "tsss_edge.config": 2,
    "tsss_edge.metrics": 3,
    "tsss_edge.data": 3,
    "tsss_edge.models": 3,
    "tsss_edge.kernels": 3,
    "tsss_edge.backends": 4,
    "tsss_edge.onnxgraph": 4,
    "tsss_edge.segment": 4,
    "tsss_edge.segmentation": 4,
    "tsss_edge.calib": 5,
    "tsss_edge.train": 5,
    "tsss_edge.label": 5,
    "tsss_edge.export": 5,
    "tsss_edge.evaluate": 6,
    "tsss_edge.bench": 6,
    "tsss_edge.parity": 6,
    "tsss_edge.stream": 6,
    "tsss_edge.doctor": 6,
    "tsss_edge.deploy": 7,
    "tsss_edge.inspection": 7,
    "tsss_edge.reproduce": 7,
    "tsss_edge.demo": 8,
    "tsss_edge.api": 8,
    "tsss_edge.cli": 9,
    "tsss_edge.__main__": 9,
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if "_share" not in path.parts}


def imports_of(path: Path, *, top_level_only: bool) -> set[str]:
    """Modules of the package that a file imports; `if TYPE_CHECKING:` does not count."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return {name for name in found if name in MODULES}


def rank(module: str) -> int:
    parts = module.split(".")
    return next(RANKS[p] for i in range(len(parts), 0, -1) if (p := ".".join(parts[:i])) in RANKS)


def test_every_module_has_a_rank_of_its_own() -> None:
    unranked = {m.split(".")[1] for m in MODULES if "." in m} - {r.split(".")[1] for r in RANKS if "." in r}
    assert not unranked, f"give these a rank in this test: {sorted(unranked)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_upward_import(module: str) -> None:
    upward = {name for name in imports_of(MODULES[module], top_level_only=False) if rank(name) > rank(module)}
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*/README.md"))]


def commands_in(page: Path) -> list[str]:
    """`tsss-edge ...` lines of fenced code blocks, continuation lines joined."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        line.strip().removeprefix("$ ") for line in lines if line.strip().removeprefix("$ ").startswith("tsss-edge ")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_pages_parse(page: Path) -> None:
    """Every command shown to a reader has the verbs and options that the command line really has."""
    from typer.main import get_command

    from tsss_edge.cli import app

    for line in commands_in(page):
        args = shlex.split(line, comments=True)[1:]
        command, context = get_command(app), None
        while hasattr(command, "commands"):
            verb = next((a for a in args if not a.startswith("-")), "")
            if verb not in command.commands:
                assert {"--help", "--version"} & set(args), f"{page.name}: no command {verb!r} in: {line}"
                break
            args = args[args.index(verb) + 1 :]
            command = command.commands[verb]
        else:
            if "--help" not in args:
                context = command.make_context("tsss-edge", args)
        if context is not None:
            context.close()
