"""The cores between network and everything else: the rule, the trial, and that the loop runs by it and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamkit import write_video
from tiny import tiny_onnx

from tsss_edge.config import load_target
from tsss_edge.export.build import build_engine
from tsss_edge.machine import usable_cores
from tsss_edge.stream import thread_plan
from tsss_edge.stream.live_loop import stream
from tsss_edge.stream.sinks import wants_blend
from tsss_edge.stream.thread_plan import measure_frame, open_for_file, plan_threads


@pytest.mark.parametrize(
    ("cores", "network_ms", "around_ms", "streams", "threads", "pinned", "decoding"),
    [
        (1, 20, 4, 1, 1, False, 1),
        (2, 22.9, 4.4, 2, 2, False, 1),  # edge-m 512x512 without VNNI: as it was, the best there
        (2, 4, 5, 1, 1, False, 1),  # the same with AMX: the network is no longer the largest part
        (2, 26, 10, 2, 2, False, 1),  # edge-m 512x512 INT8 on AVX2: 37 frames a second by one thread, 50 by two
        (2, 5.8, 11.5, 1, 1, False, 1),  # edge-s 480x352 there: 98 and 95
        (2, 5.6, 6.3, 2, 2, False, 1),  # edge-s 480x352 with VNNI: 156 and 171
        (2, 2.1, 6.6, 1, 1, False, 1),
        (2, 99, 1, 2, 2, True, 1),
        (4, 30, 10, 4, 4, False, 1),
        (4, 35, 5, 4, 4, False, 1),
        (16, 99, 1, 4, 16, True, 1),
        (4, 10, 10, 3, 3, False, 1),
        (16, 10, 10, 4, 9, False, 4),
        (8, 1, 99, 1, 1, False, 2),
    ],
)
def test_the_network_gets_its_share_of_the_cores(
    cores: int, network_ms: float, around_ms: float, streams: int, threads: int, pinned: bool, decoding: int
) -> None:
    plan = plan_threads(cores, network_ms, around_ms)
    assert (plan.streams, plan.threads, plan.pinned, plan.decoding) == (streams, threads, pinned, decoding)
    assert plan.slots == streams + 1, "one more picture, so that no stream waits for its next"
    assert plan.threads <= cores and plan.decoding <= max(1, cores // 4)
    assert f"{network_ms:.1f} ms in the network and {around_ms:.1f} ms around it" in plan.why


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    return build_engine(tiny_onnx(folder / "t.onnx").path, load_target("cpu"), folder / "t", precision="fp32").path


def test_the_trial_counts_network_and_the_rest(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_video(tmp_path / "v.mp4", frames=3)  # fewer than the trial wants
    backend, _ = open_for_file(engine, str(video), blend=False)
    network, around = measure_frame(backend, str(video), blend=True)
    backend.close()
    assert network > 0 and around > 0


@pytest.mark.parametrize(("around_ms", "streams"), [(1.0, 2), (20.0, 1)])
def test_the_loop_runs_by_the_plan_and_says_so(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, around_ms: float, streams: int
) -> None:
    monkeypatch.setattr(thread_plan, "usable_cores", lambda: 2)
    monkeypatch.setattr(thread_plan, "measure_frame", lambda *arguments, **options: (10.0, around_ms))
    report = stream(engine, str(write_video(tmp_path / "v.mp4", frames=8)), ["null://"])
    assert report.frames == 8
    assert f"{streams} stream" in report.threads and report.threads in report.summary()
    given = stream(engine, str(tmp_path / "v.mp4"), ["null://"], threads=1)
    assert given.threads == "", "--threads is the user's plan"


def test_which_sinks_want_the_blended_picture() -> None:
    assert all(map(wants_blend, ("out.mp4", "seen/%06d.jpg", "display://0", "rtsp://host/a")))
    assert not any(map(wants_blend, ("null://", "-", "a.jsonl", "masks/", "masks/%06d.png")))


def test_limits_of_a_container_count(tmp_path: Path) -> None:
    """1.5 cores are two threads; a limit above the machine, or none, changes nothing."""
    here = usable_cores(tmp_path / "nowhere")
    for text, want in (
        ("50000 100000", 1),
        ("150000 100000", min(2, here)),
        ("99999999 1000", here),
        ("max 100000", here),
    ):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert usable_cores(tmp_path) == want
    old = tmp_path / "old/cpu"
    old.mkdir(parents=True)
    (old / "cpu.cfs_period_us").write_text("100000\n")
    for quota, want in (("-1", here), ("80000", 1)):
        (old / "cpu.cfs_quota_us").write_text(quota + "\n")
        assert usable_cores(tmp_path / "old") == want
