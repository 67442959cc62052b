"""The kernels built by g++, once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostcuda import build_kernels


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared library of the `.cu` files as plain loops."""
    return build_kernels(tmp_path_factory.mktemp("kernels"))
