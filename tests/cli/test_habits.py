"""Terminal habits: versions, help of a command, quiet and loud, completion."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tsss_edge import __version__


def edge(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tsss_edge", *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("words", [("version",), ("-V",), ("--version",)])
def test_versions(words: tuple[str, ...]) -> None:
    assert edge(*words).stdout == f"tsss-edge {__version__}\n"


def test_help_of_a_command_is_its_own_help() -> None:
    assert "--image-labels" in edge("help", "data", "import").stdout
    assert "Commands" in edge("help").stdout
    wrong = edge("help", "nope")
    assert (wrong.returncode, "no command 'nope'" in wrong.stderr) == (2, True)


def test_completion_is_offered() -> None:
    assert "--install-completion" in edge("--help").stdout
