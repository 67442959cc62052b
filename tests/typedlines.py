"""Command lines as pages write them: found, and parsed as the command line does; nothing is run. Programs of `examples/`."""

from __future__ import annotations

import re
import shlex
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from tsss_edge.cli import app

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
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


def program(name: str) -> ModuleType:
    """A file of `examples/` as a module; its `main` is not called."""
    spec = spec_from_file_location(f"example_{Path(name).stem}", EXAMPLES / name)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
