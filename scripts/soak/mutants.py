"""Small changes to the code, one at a time -> does a test notice? A random sample, for the whole would take days.

python -m soak.mutants --mutants 200 --seed 1 [--rooms stream parity]

A change is: another comparison or operator, a number one larger, `and` for `or`, a condition negated, a keyword's True for False. Tests run
are those that name the changed module, then the rest of its room. Each run is in a copy of the tree. A survivor is listed with its line:
look at it, for some changes do not change behaviour (a message, a limit that is a matter of taste).
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soak.world import told

ROOT = Path(__file__).parents[2]
ROOMS = ("data", "label", "calib", "export", "kernels", "stream", "parity")
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
               ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
}
PATIENCE_S = 900.0
OUTSIDE = ("JoinedStr", "Raise", "AnnAssign")  # in messages and types a change means nothing


def places(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that can be changed, in the order of the file; none in messages, types or decorators."""
    for node in ast.iter_child_nodes(tree):
        if type(node).__name__ in OUTSIDE or isinstance(node, ast.arguments):
            continue
        if changeable(node):
            yield node
        yield from places(node)


def changeable(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in COMPARISONS
    if isinstance(node, ast.BinOp):
        return type(node.op) in OPERATORS and not isinstance(node.left, ast.Constant | ast.JoinedStr)
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float, bool)
    return isinstance(node, ast.BoolOp | ast.If | ast.IfExp)


def change(node: ast.AST) -> None:
    if isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1  # type: ignore[operator]
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)


def mutant(path: Path, draw: random.Random) -> tuple[str, str] | None:
    """The text of a changed module, and what was changed: `file:line: before -> after`."""
    tree = ast.parse(path.read_text())
    found = list(places(tree))
    if not found:
        return None
    node = draw.choice(found)
    before, line = ast.unparse(node), getattr(node, "lineno", 0)
    change(node)
    text = ast.unparse(ast.fix_missing_locations(tree))
    return text, f"{path.relative_to(ROOT)}:{line}: {before[:80]} -> {ast.unparse(node)[:80]}"


def tests_for(module: str, room: str, root: Path) -> list[str]:
    """Test files that name the module, those of its room first; where none does, the whole room."""
    files = sorted((root / "tests").rglob("test_*.py"))
    naming = [p for p in files if module in p.read_text()]
    naming.sort(key=lambda p: (p.parent.name != room, p.stat().st_size))
    return [str(p) for p in naming] or [str(root / "tests" / room)]


def noticed(tree: Path, tests: list[str], python: str) -> bool:
    """Whether some test fails, or hangs."""
    env = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    command = [python, "-m", "pytest", "-n", "0", "-x", "-q", "-m", "not slow_all", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode not in (0, 5)


def soak_mutants(count: int, seed: int, rooms: tuple[str, ...] = ROOMS, seconds: float | None = None) -> dict[str, Any]:
    """So many changes, or as many as `seconds` allow."""
    draw, began, survivors, done = random.Random(seed), time.monotonic(), list[str](), 0
    files = sorted(p for room in rooms for p in (ROOT / "tsss_edge" / room).rglob("*.py"))
    weights = [p.stat().st_size for p in files]
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "runs", "dist")
        shutil.copytree(ROOT, tree, ignore=ignored)
        while done < count and (seconds is None or time.monotonic() - began < seconds):
            path = draw.choices(files, weights)[0]
            made = mutant(path, draw)
            if made is None:
                continue
            here = tree / path.relative_to(ROOT)
            whole = here.read_text()
            here.write_text(made[0])
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not noticed(tree, tests_for(module, path.relative_to(ROOT).parts[1], tree), sys.executable):
                survivors.append(made[1])
            here.write_text(whole)
            done += 1
            sys.stderr.write(f"{done}: {made[1]}{'  SURVIVES' if survivors and survivors[-1] == made[1] else ''}\n")
    share = 1 - len(survivors) / max(1, done)
    return {"seed": seed, "mutants": done, "noticed": done - len(survivors), "share": round(share, 3), "survivors": survivors,
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="stop after so long, whatever --mutants says")
    parser.add_argument("--rooms", nargs="+", default=ROOMS, choices=ROOMS)
    args = parser.parse_args()
    report = soak_mutants(args.mutants, args.seed, tuple(args.rooms), args.seconds)
    return told(report, report["share"] >= 0.9)


if __name__ == "__main__":
    sys.exit(main())
