"""What the system tells of its processor and memory is read right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tsss_edge import machine

FLAGS = ("avx2", "avx512_vnni", "amx_int8", "asimd", "asimddp", "bf16")


def test_cpuinfo_of_x86_and_of_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", cpu)
    cpu.write_text("model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 amx_bf16\n")
    assert machine.cpu_name() == "Intel(R) Xeon(R)"
    assert machine.cpu_flags(FLAGS) == ("avx2", "avx512_vnni", "amx_int8")
    cpu.write_text("Processor\t: 0\nFeatures\t: fp asimd asimddp bf16\n")
    assert machine.cpu_flags(FLAGS) == ("asimd", "asimddp", "bf16")
    cpu.unlink()
    assert machine.cpu_flags(FLAGS) == () and machine.cpu_name()


def test_meminfo(tmp_path: Path) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:  2048 kB\nMemFree: 10 kB\nMemAvailable: 1024 kB\n")
    assert machine.memory_bytes(memory) == (2048 * 1024, 1024 * 1024)
    assert machine.memory_bytes(tmp_path / "none") == (0, 0)


def test_work_in_order_on_threads_with_few_waiting() -> None:
    from contextlib import closing

    from tsss_edge.machine import in_order

    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(100):
            taken.append(n)
            yield n

    with closing(in_order(lambda n: n * n, numbers(), threads=3, ahead=5)) as squares:
        first = [next(squares) for _ in range(10)]
        assert first == [n * n for n in range(10)] and len(taken) <= 15
        assert list(squares) == [n * n for n in range(10, 100)]


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [
        ("ssse3 avx2", True),
        ("ssse3 avx2 avx512f", True),
        ("ssse3 avx2 avx_vnni", False),
        ("ssse3 avx512f avx512_vnni amx_int8", False),
        ("asimd", False),  # Arm widens to 32 bits
        ("", False),  # the system does not tell
    ],
)
def test_which_processors_saturate(
    flags: str, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = tmp_path / "cpuinfo"
    cpu.write_text(f"flags : fpu {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", cpu)
    assert machine.int8_saturates() is saturates
