"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tsss_edge.cli import main
from tsss_edge.config import TrainConfig


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real pictures, masks and videos; a test that asks for it skips where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TSSS_EDGE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real pictures at {folder} (set TSSS_EDGE_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny set of trainkit.py, for reading only."""
    from trainkit import write_squares  # imports torch, which most tests can do without

    return write_squares(tmp_path_factory.mktemp("squares") / "data")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, by Playwright; a test that asks for it skips where one of them is absent."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium (apt-get install chromium, or set CHROMIUM)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def config() -> TrainConfig:
    """Settings for the tiny set: two epochs of three steps, one thread."""
    return TrainConfig(
        size_hw=(64, 64), epochs=2, batch=4, lr=2e-3, warmup_epochs=0.5, ema=0.5, scale_range=(0.9, 1.1), threads=1
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no CUDA driver, and say so."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_cuda_driver():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA driver (libcuda.so.1) on this machine"))


def _has_cuda_driver() -> bool:
    import ctypes

    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `tsss-edge ARGS` in this process -> (exit code, stdout, stderr)."""

    def call(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tsss-edge", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        return int(stopped.value.code or 0), told.out, told.err

    return call
