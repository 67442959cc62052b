"""What a benchmark found. Times in milliseconds a call, rates in pictures a second."""

from __future__ import annotations

from tsss_edge.artifacts import Struct
from tsss_edge.metrics import Percentiles


class Timed(Struct, frozen=True):
    """One network alone, one request at a time: a picture, or a batch where the engine takes nothing smaller."""

    file: str
    latency_ms: Percentiles
    throughput_fps: float  # pictures / seconds spent in calls
    runs: int
    ratio: float  # its median / the engine's median, a picture, from alternating rounds of one run
    best_ms: float  # the least disturbed call
    ratio_best: float  # its best / the engine's best, a picture: what to read on a busy machine


class EndToEnd(Struct, frozen=True):
    """Frame in memory -> blended frame in memory, one after the other on one thread."""

    latency_ms: Percentiles
    throughput_fps: float
    stages_ms: dict[str, float]  # median of each stage
    limited_by: str  # the stage with the largest median
    frame_hw: tuple[int, int]
    runs: int


class Machine(Struct, frozen=True):
    """State of the machine around the measurement. None where it does not tell."""

    cpu: str
    cores: int  # that this process may use
    threads: int | None  # asked for; None: the back end's choice
    governor: str | None
    mhz_before: float | None  # mean over cores
    mhz_after: float | None
    load_before: float | None  # one-minute load average
    gpu: str | None = None
    units: tuple[str, ...] = ()  # vector and matrix instructions: INT8 gains 4x over FP32 by VNNI, 16x by AMX


class BenchReport(Struct, frozen=True):
    """`latency_ms` and `throughput_fps` are the network alone; `end_to_end` has everything around it."""

    engine: str
    runs_on: str
    latency_ms: Percentiles
    throughput_fps: float
    end_to_end: EndToEnd | None
    runs: int
    best_ms: float
    compare: dict[str, Timed]
    benchmark_app: Timed | None  # OpenVINO's own tool on the same file, in alternating rounds
    machine: Machine
    notes: tuple[str, ...]

    def summary(self) -> str:
        """For a terminal."""
        rows = [_row(self.runs_on, self.latency_ms, self.throughput_fps, "network alone")]
        others = {**self.compare, **({"benchmark_app": self.benchmark_app} if self.benchmark_app else {})}
        rows += [
            _row(name, t.latency_ms, t.throughput_fps, f"{t.ratio:.2f} x (best {t.ratio_best:.2f} x)")
            for name, t in others.items()
        ]
        if (all_of_it := self.end_to_end) is not None:
            stages = ", ".join(f"{name} {ms:.2f}" for name, ms in all_of_it.stages_ms.items())
            size = "{1}x{0}".format(*all_of_it.frame_hw)
            rows.append(_row("end to end", all_of_it.latency_ms, all_of_it.throughput_fps, f"{size}: {stages}"))
            rows.append(f"limited by {all_of_it.limited_by}")
        return "\n".join([*rows, self._machine_row(), *(f"note: {note}" for note in self.notes)])

    def _machine_row(self) -> str:
        m = self.machine
        clock = f", {m.mhz_after:.0f} MHz" if m.mhz_after else ""
        units = f", {' '.join(m.units)}" if m.units else ""
        gpu = f", {m.gpu}" if m.gpu else ""
        return f"{m.cpu}, {m.cores} cores{clock}, governor {m.governor or 'unknown'}{units}{gpu}"


def _row(name: str, p: Percentiles, fps: float, more: str) -> str:
    return f"{name:<20} p50 {p.p50:8.2f}  p95 {p.p95:8.2f}  p99 {p.p99:8.2f} ms  {fps:8.1f} fps  {more}"
