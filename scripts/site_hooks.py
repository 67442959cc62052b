"""Hooks of mkdocs.yml: the README as the first page, the commands' own help as a page, files beside docs/ under their names.

Links are written for readers of the repository (`docs/stream.md` in the README, `../export/README.md` in a page); here they
are turned to where the same file lies in the site.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("export/README.md", "calib/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
COMMANDS = "reference/commands.md"
# Files that a page may point to and that are no pages: shown as their names, for the site has no home on the web of its own.
NO_PAGE = re.compile(r"\[([^\]]+)\]\((?:\.\./)*((?:scripts|tests|tsss_edge|examples|deploy|LICENSE)[^)\s]*)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    files.append(File.generated(config, COMMANDS, content=commands()))
    for name in BESIDE:
        if (ROOT / name).is_file():
            files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    place = page.file.src_uri
    if place == "index.md":
        markdown = markdown.replace("](docs/", "](").replace('"docs/', '"')
    elif place in BESIDE:
        up = "../" * place.count("/")
        markdown = markdown.replace(f"]({up}docs/", f"]({up}")
    elif place.count("/") == 0:
        markdown = re.sub(r"\]\(\.\./(export|calib|CHANGELOG|CONTRIBUTING|SECURITY)", r"](\1", markdown)
    else:
        markdown = re.sub(r"\]\(\.\./\.\./(export|calib|CHANGELOG|CONTRIBUTING|SECURITY)", r"](../\1", markdown)
    return NO_PAGE.sub(r"`\2`", markdown)


def commands() -> str:
    """Help of every command, as Typer's own writer puts it.

    Raises: subprocess.CalledProcessError: the command line cannot be imported.
    """
    command = [sys.executable, "-m", "typer", "tsss_edge.cli", "utils", "docs", "--name", "tsss-edge"]
    done = subprocess.run([*command, "--title", "Every command and option"], check=True, capture_output=True, cwd=ROOT)
    return done.stdout.decode()
