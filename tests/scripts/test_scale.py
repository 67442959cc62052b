"""The simulation of many cameras: its arithmetic, worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from scale_simulation import Assumptions, plan

ROOT = Path(__file__).parents[2]
ONE = Assumptions(
    fps=10, frame_core_ms=2, network_core_ms=8, gpu_fps=1000, camera_mbit=2, picture_bytes=50_000, answer_bytes=12_500,
    use=0.5, host_cores=16, core_hour=0.1, gpu_hour=2, overhead_mib=256, camera_mib=8,
)  # fmt: skip


def test_a_hundred_cameras_by_hand() -> None:
    """1000 frames a second: 2 + 8 core-seconds, at half use 20 cores; 62.5 kB each way are half a gigabit."""
    p = plan(100, ONE)
    assert (p.edge_cores, p.edge_hosts, p.pool_cores, p.gpus) == (20, 2, 4, 2)
    assert (p.ingest_gbit, p.pool_gbit) == (0.2, 0.5)
    assert p.memory_gib == (2 * 256 + 100 * 8) / 1024
    assert (p.cost_cpu, round(p.cost_gpu, 6)) == (2.0, 4.4)


def test_the_page_says_what_was_measured_and_what_assumed(tmp_path: Path) -> None:
    measured = {
        "frame_core_ms": 3.0, "network_core_ms": 4.0, "picture_bytes": 10, "answer_bytes": 10, "overhead_mib": 200.0, "camera_mib": 5.0,
    }  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps({"simulation": measured}))
    command = [sys.executable, str(ROOT / "scripts/scale_simulation.py"), "--measured", "m.json", "--out", "page.md"]
    subprocess.run(command, cwd=tmp_path, check=True)
    text = (tmp_path / "page.md").read_text()
    assert "| core-ms of the network on this CPU (time of a call on one thread) | 4 | measured, scale.md |" in text
    assert "| price of a GPU-hour | 1 | assumed |" in text
    assert text.count("\n| 10,000 |") == 1 and "Not a measurement" in text
