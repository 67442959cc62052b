"""Writes that are whole or not there, several files at once, one writer, and what a kill leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tsss_edge import disk
from tsss_edge.artifacts import Classes
from tsss_edge.data.voc import RECIPE, claim
from tsss_edge.disk import MARK, atomic_path, finish_swap, held, is_empty, scratch, scratch_folder, swap_in
from tsss_edge.errors import BusyError, DataError
from tsss_edge.field.kept import MANIFEST, KeptFrames
from tsss_edge.files import write_bytes

DEAD = 2**22 + 1  # above Linux's largest process number


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is a new process as far as sweeping goes."""
    monkeypatch.setattr(disk, "_swept", set())


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.txt", b"old")
    with pytest.raises(OSError, match="full"), atomic_path(tmp_path / "a.txt") as path:
        path.write_bytes(b"half")
        raise OSError("full")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_bytes() == b"old"


def test_leftovers_of_dead_processes_are_swept_and_others_are_not(tmp_path: Path) -> None:
    host = disk._host()
    dead, folder = tmp_path / f"{MARK}-{host}-{DEAD}-aa.pt", tmp_path / f"{MARK}-{host}-{DEAD}-bb"
    mine, foreign = tmp_path / f"{MARK}-{host}-{os.getpid()}-cc", tmp_path / f"{MARK}-elsewhere-{DEAD}-dd"
    old = tmp_path / f"{MARK}-elsewhere-{DEAD}-ee"
    folder.mkdir()
    for path in (dead, folder / "x", mine, foreign, old):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    scratch(tmp_path)
    assert {p for p in tmp_path.iterdir()} == {mine, foreign}


@pytest.mark.parametrize("kill_at", ["before the note", "after it"])
def test_a_set_whose_making_was_killed_at_its_first_file_is_made_again(tmp_path: Path, kill_at: str) -> None:
    """`data import` could not be run again when it was killed while it wrote its note: a nameless leftover made the folder "not empty"."""
    left = tmp_path / f"{MARK}-{disk._host()}-{DEAD}-aa.json"
    assert is_empty(tmp_path / "none") and is_empty(tmp_path)
    left.write_bytes(b"{")
    assert is_empty(tmp_path)
    if kill_at == "after it":
        claim(tmp_path, {"seed": 1})
    claim(tmp_path, {"seed": 1})
    assert not is_empty(tmp_path) and [p.name for p in tmp_path.iterdir()] == [RECIPE]
    with pytest.raises(DataError, match="holds another set"):
        claim(tmp_path, {"seed": 2})


def test_what_somebody_else_keeps_there_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_bytes(b"x")
    assert not is_empty(tmp_path)
    with pytest.raises(DataError, match="not a set made here"):
        claim(tmp_path, {"seed": 1})


@pytest.mark.parametrize("file", [MANIFEST, "classes.txt"])
def test_a_collection_killed_at_its_first_files_goes_on(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes, whole = Classes(names=("background", "cat")), disk.atomic_path

    @contextmanager
    def killed(path: Path, **options: bool) -> Iterator[Path]:
        if path.name == file:
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / f"{MARK}-{disk._host()}-{DEAD}-aa").write_bytes(b"{")
            raise KeyboardInterrupt
        with whole(path, **options) as temporary:
            yield temporary

    monkeypatch.setattr("tsss_edge.files.atomic_path", killed)
    with pytest.raises(KeyboardInterrupt):
        KeptFrames(tmp_path / "kept", classes, features="answers")
    monkeypatch.undo()
    assert KeptFrames(tmp_path / "kept", classes, features="answers").entries == {}
    assert (tmp_path / "kept/classes.txt").read_text() == "background\ncat\n"


def test_a_link_is_swept_and_not_what_it_shows(tmp_path: Path) -> None:
    (tmp_path / "kept.jpg").write_bytes(b"x")
    (tmp_path / f"{MARK}-{disk._host()}-{DEAD}-aa.jpg").symlink_to(tmp_path / "kept.jpg")
    scratch(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.jpg"]


def filled(home: Path, names: list[str], text: str) -> None:
    for name in names:
        (home / name).write_text(text)


NAMES = ["e.xml", "e.bin", "e.json"]


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_swap_that_was_killed_is_finished_by_the_next_reader(tmp_path: Path, moved: int) -> None:
    """Killed after `moved` of three renames: the folder still has the name that decides, whoever comes next moves on."""
    filled(tmp_path, NAMES, "old")
    with scratch_folder(tmp_path) as folder:
        filled(folder, NAMES, "new")
        (folder / disk.ORDER).write_text("".join(f"{name}\n" for name in NAMES))
        folder.rename(tmp_path / f"{MARK}.swap.e.xml")
    for name in NAMES[:moved]:
        (tmp_path / f"{MARK}.swap.e.xml" / name).rename(tmp_path / name)
    finish_swap(tmp_path, "e.xml")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(NAMES, "new")


def test_a_swap_that_did_not_begin_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, NAMES, "old")
    monkeypatch.setattr(disk, "_move", lambda swap: pytest.fail("moved"))
    with pytest.raises(FileNotFoundError), scratch_folder(tmp_path) as folder:
        filled(folder, NAMES[:2], "new")
        swap_in(folder, tmp_path, NAMES, "e.xml")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(NAMES, "old")


def test_a_swap_of_all_files(tmp_path: Path) -> None:
    filled(tmp_path, NAMES, "old")
    with scratch_folder(tmp_path) as folder:
        filled(folder, NAMES, "new")
        swap_in(folder, tmp_path, NAMES, "e.xml")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(NAMES, "new")


HOLD = """
import sys
from pathlib import Path
from tsss_edge.disk import held
with held(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it_and_a_kill_frees_it(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    with (
        pytest.raises(BusyError, match=f"my run: is being written by process {process.pid} on "),
        held(tmp_path / "run", "my run"),
    ):
        pytest.fail("both hold it")
    process.kill()
    process.communicate()
    with held(tmp_path / "run", "my run"), held(tmp_path / "run", "my run again"):
        pass
    assert not list(tmp_path.iterdir()), "the lock's file goes with it"


def test_a_folder_has_one_lock_before_and_after_it_is_made(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    with pytest.raises(BusyError), held(tmp_path / "run", "my run"):
        pytest.fail("both hold it")
    process.communicate("\n")
    with held(tmp_path / "run", "my run"):
        pass


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_end(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tsss_edge.files import write_bytes; write_bytes(Path(sys.argv[1]), b'x')"
    log = tmp_path / "log"
    calls = "trace=fsync,rename,renameat,renameat2"
    subprocess.run(
        ["strace", "-f", "-y", "-e", calls, "-o", log, sys.executable, "-c", code, tmp_path / "a.pt"], check=True
    )
    lines = [line.split(None, 1)[1] for line in log.read_text().splitlines() if str(tmp_path) in line]
    assert [line.partition("(")[0].removesuffix("at").removesuffix("at2") for line in lines] == [
        "fsync",
        "rename",
        "fsync",
    ]
    assert MARK in lines[0] and lines[2].count("/") == lines[0].count("/") - 1, "the file, then its folder"
