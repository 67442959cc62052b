"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from datakit import write_set


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The set of `datakit`, to be changed at will."""
    return write_set(tmp_path / "tiny")
