"""All `gpu` tests, through real PyCUDA, on the fake driver: what a process leaves behind is an error too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import fakedriver
import pytest

TESTS = Path(__file__).parents[1]
NOT_HERE = ("tensorrt", "PyTorch")  # what a skip may name: both bring machine code for a real GPU


def gpu_files() -> list[str]:
    """Every test file with a `gpu` mark."""
    return sorted(
        str(p) for p in TESTS.rglob("test_*.py") if re.search(r"^(@|.*= )pytest\.mark\.gpu", p.read_text(), re.M)
    )


@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
def test_all_gpu_tests_pass_on_the_fake(tmp_path: Path, integrated: bool) -> None:
    report = tmp_path / "report.jsonl"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "gpu", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *gpu_files()],
        env=fakedriver.environment(report, integrated=integrated),
        cwd=fakedriver.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all(any(name in line for name in NOT_HERE) for line in skipped), skipped
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 3
    end = json.loads(report.read_text().splitlines()[-1])
    assert end["launches"] > 1000 and end["captures"], "the CUDA loop ran, with graphs"
    assert end["errors"] == {"cuMemAlloc_v2 2": 1}, "no call broke a rule, but for the test that asks for too much"
    kinds = ("device_memory", "pinned_memory", "streams", "events", "graphs", "modules", "contexts")
    assert {kind: end[kind] for kind in kinds} == dict.fromkeys(kinds, 0)


def test_what_a_process_leaves_is_counted(tmp_path: Path) -> None:
    """An engine's memory that nobody closed, and a second GPU that somebody touched."""
    script = "from tsss_edge.backends.cuda.driver import PrimaryContext as C; c = C()"
    script += "; c.allocate(9); c.stream(); c.pinned((2,), 'uint8')"
    environment = fakedriver.environment(tmp_path / "report.jsonl", devices=2)
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)
    end = json.loads((tmp_path / "report.jsonl").read_text())
    assert [end[kind] for kind in ("device_memory", "streams", "pinned_memory", "contexts")] == [1, 1, 1, 1]
    assert end["retains"][0] > 0


@pytest.mark.parametrize(
    ("arguments", "visible", "touched"),
    [
        ([], "", [True, False, False]),
        (["--device", "2"], "", [False, False, True]),
        (["--device", "1"], "2,0", [True, False, False]),  # the second of those that a scheduler gave
    ],
)
def test_only_the_chosen_gpu_is_touched(
    tmp_path: Path, arguments: list[str], visible: str, touched: list[bool]
) -> None:
    """`doctor` looks at everything, and takes a context on one GPU only."""
    environment = fakedriver.environment(tmp_path / "report.jsonl", devices=3)
    environment |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    command = [sys.executable, "-m", "tsss_edge", "doctor", *arguments]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "Fake GPU 0" in told and "8.0 GiB free of 8.0" in told
    assert [times > 0 for times in json.loads((tmp_path / "report.jsonl").read_text())["retains"]] == touched


def test_a_gpu_that_is_not_there_is_one_plain_line(tmp_path: Path) -> None:
    environment = fakedriver.environment(tmp_path / "report.jsonl", devices=2)
    command = [sys.executable, "-m", "tsss_edge", "doctor", "--device", "5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 4 and done.stderr.startswith("error: no GPU 5: ") and "nvidia-smi -L" in done.stderr
