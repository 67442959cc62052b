"""pip builds our own wheel once a session; bundles and kits of the tests get a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tsss_edge.deploy import bundle

real_run_pip = bundle.run_pip


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(autouse=True)
def _built_once(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: Sequence[str]) -> None:
        if arguments[0] != "wheel":
            return real_run_pip(arguments)
        at = list(arguments).index("--wheel-dir") + 1
        if not any(built.iterdir()):
            real_run_pip([*arguments[:at], str(built), *arguments[at + 1 :]])
        for wheel in built.iterdir():
            shutil.copy(wheel, arguments[at])
        return None

    monkeypatch.setattr(bundle, "run_pip", run)
