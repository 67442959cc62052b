"""What the pages tell a reader to type exists; the site builds without a broken link."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typedlines import commands, parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("*/*.md"),
        *(page for name in ("docs", "examples") for page in (ROOT / name).rglob("*.md")),
    }
)


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
