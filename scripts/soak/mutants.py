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
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

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
PATIENCE_S, CPU_S = 900, 300  # of one run: for threads that wait for ever, and for loops without an end
HANGS, CRASHES = "(hangs)", "(no test runs)"
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    "PYTHONDONTWRITEBYTECODE": "",
}
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "cv2",
    "av",
    "numba",
    "scipy.sparse",
    "scipy.optimize",
    "PIL.Image",
)
OPTIONS = ("-n", "0", "-x", "-q", "-p", "no:cacheprovider", "-m")
QUICK, ALL = "not slow and not slow_all", "not slow_all"
OUTSIDE = ("JoinedStr", "Raise", "AnnAssign")  # in messages and types a change means nothing


def places(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that can be changed, in the order of the file; none in messages, types or decorators, nor in what only guards a slip."""
    for node in ast.iter_child_nodes(tree):
        if type(node).__name__ in OUTSIDE or isinstance(node, ast.arguments) or guards(node):
            continue
        if changeable(node):
            yield node
        yield from places(node)


def guards(node: ast.AST) -> bool:
    """`frozen=` of a struct, `strict=` of a zip, `if TYPE_CHECKING`: nothing happens without them while the code is right."""
    if isinstance(node, ast.keyword):
        return node.arg in ("frozen", "strict")
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


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
    told = f"{path.relative_to(ROOT)}:{line}: {before[:80]} -> {ast.unparse(node)[:80]}"
    return text, " ".join(told.split())


def tests_for(module: str, room: str, root: Path, *, quick: bool = False) -> list[str]:
    """Test files that name the module, its own first, those of its room next; then, unless `quick`, the rest of the room."""
    package, _, stem = module.rpartition(".")
    names = re.compile(rf"{re.escape(package)}(\.{stem}\b| import [^\n]*\b{stem}\b)")
    files = [
        p for p in sorted((root / "tests").rglob("test_*.py")) if p.parent.name == room or names.search(p.read_text())
    ]
    files.sort(
        key=lambda p: (
            p.stem != f"test_{stem}",
            not names.search(p.read_text()),
            p.parent.name != room,
            p.stat().st_size,
        )
    )
    naming = [str(p) for p in files if names.search(p.read_text())]
    return naming if quick and naming else [str(p) for p in files]


class Tree:
    """A copy of the repository in which one module at a time is another."""

    def __init__(self, root: Path, marks: str = ALL) -> None:
        self.root, self._marks = root, marks
        self._tick = time.time()
        self._sound: dict[tuple[str, str], bool] = {}
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "runs", "dist")
        shutil.copytree(ROOT, root, ignore=ignored)

    def put(self, path: Path, text: str) -> None:
        """Write a module with a time of its own, so that no compiled file of another text passes for it."""
        path.write_text(text)
        self._tick += 2.0
        os.utime(path, (self._tick, self._tick))
        for other in path.parent.glob("*.py") if path.parent.name == "kernels" else ():
            if f"kernels.{path.stem} import" in other.read_text():
                self._forget(other.stem)

    def _forget(self, module: str) -> None:
        """Its compiled code, which does not know that a function that it calls has changed."""
        for kept in (self.root / "numba").rglob(f"{module}.*"):
            kept.unlink()

    def notices(self, name: Path, text: str, tests: list[str]) -> str | None:
        """The test that fails with `text` as the module `name` and passes without; None where none does."""
        path, unsound = self.root / name, list[str]()
        whole = path.read_text()
        while True:
            self.put(path, text)
            failed = self.first_failure([*tests, *(f"--deselect={test}" for test in unsound)])
            if failed is None or self._passes(path, whole, failed, tests):
                break
            assert failed not in unsound, f"{failed} fails without a change and cannot be left out"
            unsound.append(failed)
        self.put(path, whole)
        return failed

    def _passes(self, path: Path, whole: str, failed: str, tests: list[str]) -> bool:
        """Whether it does not fail with the module as it is, written the way a change is (no comments, other line breaks)."""
        key = (str(path), failed)
        if key not in self._sound:
            self.put(path, ast.unparse(ast.parse(whole)))
            again = self.first_failure(tests if failed in (HANGS, CRASHES) else [failed])
            self._sound[key] = again != failed if failed in (HANGS, CRASHES) else again is None
        return self._sound[key]

    def first_failure(self, tests: list[str]) -> str | None:
        """The id of the first test that fails; None where all pass."""
        said = self.root / "said.txt"
        child = os.fork()
        if child == 0:
            self._run([*OPTIONS, self._marks, *tests], said)
        until = time.monotonic() + PATIENCE_S
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return HANGS
            time.sleep(0.05)
        if os.waitstatus_to_exitcode(ended[1]) in (0, 5):
            return None
        found = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said.read_text(errors="replace"), re.MULTILINE)
        return str(found[0]) if found else CRASHES

    def _run(self, args: list[str], said: Path) -> NoReturn:
        """pytest in this process, a fork of one that has imported what is heavy, so that a run costs its tests alone."""
        os.setsid()
        os.chdir(self.root)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(ENVIRONMENT, PYTHONPATH=str(self.root), NUMBA_CACHE_DIR=str(self.root / "numba"))
        sys.dont_write_bytecode = False
        outside = (p for p in sys.path if not Path(p).is_relative_to(ROOT) or Path(p).is_relative_to(sys.prefix))
        sys.path = [str(self.root), *outside]
        code = 99
        try:
            code = int(pytest.main(args))
        finally:
            sys.stdout.flush()
            os._exit(code)


def soak_mutants(
    count: int, seed: int, rooms: tuple[str, ...] = ROOMS, seconds: float | None = None, marks: str = ALL
) -> dict[str, Any]:
    """So many changes, or as many as `seconds` allow; none twice."""
    draw, began, survivors, seen = random.Random(seed), time.monotonic(), list[str](), set[str]()
    files = sorted(p for room in rooms for p in (ROOT / "tsss_edge" / room).rglob("*.py"))
    weights = [p.stat().st_size for p in files]
    for heavy in HEAVY:
        __import__(heavy)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        tree = Tree(Path(folder) / "tree", marks)
        while len(seen) < count and (seconds is None or time.monotonic() - began < seconds):
            path = draw.choices(files, weights)[0]
            made = mutant(path, draw)
            if made is None or made[1] in seen:
                continue
            seen.add(made[1])
            name = path.relative_to(ROOT)
            module = ".".join(name.with_suffix("").parts).removesuffix(".__init__")
            test = tree.notices(name, made[0], tests_for(module, name.parts[1], tree.root, quick=marks == QUICK))
            survivors += [made[1]] if test is None else []
            sys.stderr.write(f"{len(seen)}: {made[1]}  {test or 'SURVIVES'}  {time.monotonic() - began:.0f} s\n")
    noticed = len(seen) - len(survivors)
    return {"seed": seed, "mutants": len(seen), "noticed": noticed, "share": round(noticed / max(1, len(seen)), 3),
            "survivors": survivors, "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="stop after so long, whatever --mutants says")
    parser.add_argument("--rooms", nargs="+", default=ROOMS, choices=ROOMS)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run only tests that name the module and are not slow; look at survivors with the others",
    )
    args = parser.parse_args()
    report = soak_mutants(args.mutants, args.seed, tuple(args.rooms), args.seconds, QUICK if args.quick else ALL)
    return told(report, report["share"] >= 0.9)


if __name__ == "__main__":
    sys.exit(main())
