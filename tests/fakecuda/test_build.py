"""What the fake driver's builder does where it cannot build: it skips, and where nobody reads skips it fails."""

from __future__ import annotations

from pathlib import Path

import fakedriver
import pytest


def test_a_missing_compiler_skips_on_a_desk_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CI", "TSSS_EDGE_NEEDS_FAKE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"needs nvcc, the CUDA headers and g\+\+"):
        fakedriver.cuda_headers()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="so this is no skip"):
        fakedriver.cuda_headers()


def test_a_package_index_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CI", "TSSS_EDGE_NEEDS_FAKE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fakedriver, "PYCUDA", "0.0.0")  # no such version
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(pytest.skip.Exception, match="PyCUDA's sources cannot be fetched"):
        fakedriver._build_pycuda(tmp_path, tmp_path)
