"""The rehearsals: slices of a minute in `make test-all`, and every input that ever failed."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from soak import fuzz, mutants

ROOT = Path(__file__).parents[2]
CORPUS = sorted(p for p in (ROOT / "tests/corpus").rglob("*") if p.is_file())


def slice_of(module: str, *args: str) -> dict[str, object]:
    """Run `python -m soak.MODULE ARGS` -> its report. In a process of its own, because it forks."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "scripts"))), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-m", f"soak.{module}", *args], env=env, capture_output=True, text=True)
    assert done.stdout, done.stderr[-2000:]
    report: dict[str, object] = json.loads(done.stdout)
    assert done.returncode == 0 and report["passed"], done.stdout[-3000:]
    return report


@pytest.mark.slow_all
def test_a_minute_of_kills() -> None:
    report = slice_of("kill", "--seconds", "60", "--seed", "2")
    assert report["kills"]


@pytest.mark.slow_all
def test_a_minute_of_damaged_inputs_and_all_that_ever_failed(tmp_path: Path) -> None:
    report = slice_of("fuzz", "--seconds", "60", "--seed", "2", "--corpus", str(ROOT / "tests/corpus"), "--no-keep")
    assert report["from_corpus"] == len(CORPUS)


@pytest.mark.slow_all
def test_sources_that_die() -> None:
    slice_of("sources", "--deaths", "20", "--seed", "2")


@pytest.mark.slow_all
def test_the_page_under_silent_clients_and_a_large_body() -> None:
    slice_of("page", "--clients", "200", "--body-mib", "1024", "--seconds", "5")


@pytest.mark.slow_all
def test_full_and_closed_disks() -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", "--fake", "-t", "tmpfs", "x", "/mnt"], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    slice_of("disk", "--rounds", "1", "--seed", "2")


def test_the_same_seed_makes_the_same_damage() -> None:
    data = bytes(range(256)) * 4
    made = [fuzz.mutated(data, random.Random(f"1/{n}")) for n in range(50)]
    assert made == [fuzz.mutated(data, random.Random(f"1/{n}")) for n in range(50)]
    assert sum(one != data for one in made) > 45
    content = json.dumps({"a": [1, 2, {"b": "c"}]}).encode()
    assert len({fuzz.mutated_json(content, random.Random(n)) for n in range(50)}) > 25


def test_an_accepted_change_and_a_foreign_exception_are_failures(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1")
    sealed = fuzz.Reader("x", "x", lambda p: p.read_bytes(), sealed=True)
    assert fuzz.attempt(sealed, path, b"0") == "changed bytes were accepted"
    assert fuzz.attempt(sealed, path, b"1") == ""
    assert fuzz.attempt(fuzz.Reader("x", "x", lambda p: {}["gone"]), path, None).startswith("KeyError")


def test_mutants_are_programs_and_leave_messages_alone() -> None:
    code = 'def f(a: int = 3) -> int:\n    """Two."""\n    if a < 2 and a:\n        raise ValueError(f"{a + 1}")\n    return a * 2\n'
    tree = ast.parse(code)
    found = [ast.unparse(node) for node in mutants.places(tree)]
    assert found == ["if a < 2 and a:\n    raise ValueError(f'{a + 1}')", "a < 2 and a", "a < 2", "2", "a * 2", "2"]
    path = ROOT / "tsss_edge/parity/verdict.py"
    for seed in range(20):
        made = mutants.mutant(path, random.Random(seed))
        assert made is not None and ast.unparse(ast.parse(made[0])) != ast.unparse(ast.parse(path.read_text()))
