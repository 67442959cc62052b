"""What the pages tell a reader to type exists; the site builds without a broken link."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from tsss_edge.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "export/README.md", "calib/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
BLOCK = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = {"|", ">", ">>", "&&", ";", "&", "2>&1"}  # where the arguments of a command end


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `tsss-edge` line of a page's shell blocks; lines with `...` are patterns, not commands."""
    found = []
    for block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if "tsss-edge" in words and not any("..." in word for word in words):
                rest = words[words.index("tsss-edge") + 1 :]
                found.append(rest[: next((at for at, word in enumerate(rest) if word in SHELL), len(rest))])
    return found


@cache
def whole() -> Any:
    """The command line, as click sees it."""
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """Options and number of arguments, as the command line takes them; nothing is run. Raises: click's UsageError."""
    command: Any = whole()
    context = command.context_class(command, info_name="tsss-edge")
    while hasattr(command, "commands"):
        values, words, _ = command.make_parser(context).parse_args(list(words))
        if not words or "help" in values:
            return
        command = command.commands[words[0]]
        context = command.context_class(command, info_name=words[0], parent=context)
        words = words[1:]
    values, left, _ = command.make_parser(context).parse_args(list(words))
    assert not left, f"more arguments than {command.name} takes: {left}"
    if "help" not in values:
        missing = [p.name for p in command.params if p.required and values.get(p.name) in (None, ())]
        assert not missing, f"{command.name} needs {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one(page: Path) -> None:
    for words in commands(page):
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"{page.relative_to(ROOT)}: tsss-edge {shlex.join(words)}: {error!r}")


def test_a_stale_command_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\ntsss-edge stream a.xml \\\n  in.mp4 --no-such-option | cat\ntsss-edge export ...\n```\n")
    (words,) = commands(page)
    assert words == ["stream", "a.xml", "in.mp4", "--no-such-option"]
    with pytest.raises(Exception, match="no-such-option"):
        parse(words)
    with pytest.raises(AssertionError, match="needs"):
        parse(["export"])


@pytest.mark.slow_all
def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands_page = (tmp_path / "site/reference/commands.html").read_text()
    assert "tsss-edge build-engine" in commands_page and "--parity-every" in commands_page
    assert "check_parity" in (tmp_path / "site/reference/python.html").read_text()
