"""What the page writers share, and the page of the live loop from known numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pages
import pytest
import stream_page

BENCH: dict[str, Any] = {
    "machine": {"cores": 2, "cpu": "a CPU", "units": ["avx2"]},
    "naive_fps": 1.0, "stream_fps": 11.5, "network_fps": 14.0, "ratio_naive": 11.5, "ratio_network": 0.82,
    "bound_fps": 12.1, "efficiency": 0.95, "first_mask_s": 1.25, "core_ms": {"network": 70.0, "overlay": 2.5},
}  # fmt: skip
SOAK: dict[str, Any] = {
    "engine_ms": 100.0, "seconds": 600.0, "arrived": 18000, "masks": 5990, "dropped": 12008, "after_last_mask": 2,
    "age_ms": {"p50": 120.0, "p95": 133.0, "p99": 135.0, "max": 140.0}, "older_than_limit": 0, "age_limit_ms": 200.0,
    "memory_mib": {"start": 100.0, "middle": 101.0, "end": 101.0}, "memory_slope_mib_per_minute": 0.01,
    "stopped_s": [], "masks_around_stops": 0, "passed": {"age": True, "memory": True, "drops": True},
}  # fmt: skip
RESTARTS: dict[str, Any] = {
    "restarts": 20, "reconnects": 20, "back_s": {"p50": 0.3, "max": 0.9}, "masks": 525, "frames_no_camera_sent": 1,
    "memory_mib": [100.0, 110.0, 110.5], "threads": [5, 5],
    "passed": {"came_back": True, "frames": False, "memory": True, "threads": True},
}  # fmt: skip


def test_tables_and_twins(tmp_path: Path) -> None:
    assert pages.table(("a", "b"), [("x", "1")]) == "| a | b |\n|---|---|\n| x | 1 |"
    assert pages.table(("a", "b"), [], right=True).splitlines()[1] == "|---|---:|"
    assert (pages.percent(None), pages.percent(70.04), pages.met(False)) == ("-", "70.0", "missed")
    pages.write_page(tmp_path / "p.md", "text\n", {"miou": 70.0})
    assert (tmp_path / "p.md").read_text() == "text\n"
    assert json.loads((tmp_path / "p.json").read_text()) == {"miou": 70.0}


def test_a_command_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--name", "CamVid edge-m", str(tmp_path / "runs/best.pt")])
    assert pages.command("x.py") == 'python scripts/x.py --name "CamVid edge-m" runs/best.pt'


def test_the_machine_is_read_before_and_after() -> None:
    machine = pages.watch_machine(1)()
    assert machine.threads == 1 and machine.cores >= 1


def test_page_of_the_live_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = {"fps": 11.0, "parity": {"checked": 5, "due": 29}}
    found = {"bench": BENCH, "trained": BENCH, "plain": {"fps": 11.5, "source": "/here/street.mp4"}}
    for name, content in {**found, "watched": watched, "live": SOAK, "restarts": RESTARTS}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    out = tmp_path / "stream.md"
    monkeypatch.setattr(sys, "argv", ["stream_page.py", "--work", str(tmp_path), "--out", str(out)])
    stream_page.main()
    text = out.read_text()
    assert "| live loop, frames/s | 11.5 | 11.5 |" in text and "| network, core-ms | 70.00 | 70.00 |" in text
    assert "At least 15 times the naive loop: **missed**, 11.5. A loop without any loss would give 12.1" in text
    assert "At least 0.85 of the bound: **met**, 0.95" in text
    assert "(each server has a colour of its own): **missed**" in text and "18,000" in text
    assert json.loads(out.with_suffix(".json").read_text())["plain"]["source"] == "street.mp4"
