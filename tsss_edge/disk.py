"""Changes on disk that are there whole or not at all, after a power cut too, and made by one writer at a time.

What a killed run leaves is hidden and named `.tsss-edge-HOST-PID-...`: readers skip hidden names, and the next writer in that
folder removes it once the process is gone.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tsss_edge.errors import ArtifactError, BusyError

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

MARK = ".tsss-edge"  # how every hidden name of ours begins: "-" follows for scratch, "." for locks and swaps
FORGOTTEN_S = 24 * 3600.0  # after which scratch of another host counts as left behind
ORDER = ".order"  # in a swap: the names that move, in their order
_swept: set[Path] = set()
_held: dict[Path, int] = {}  # locks of this process, with how often it took each


# -- Scratch


def scratch(folder: Path, suffix: str = "") -> Path:
    """A new hidden name in `folder`, which is made; leftovers of killed runs there are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    return folder / f"{MARK}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def is_empty(folder: Path) -> bool:
    """Whether a folder is absent, or holds nothing but leftovers of killed runs."""
    return not folder.is_dir() or all(path.name.startswith(f"{MARK}-") for path in folder.iterdir())


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32] or "host"


def _sweep(folder: Path) -> None:
    """Once a process and folder: the listing of a large set takes time."""
    if (place := folder.resolve()) in _swept:
        return
    _swept.add(place)
    for entry in os.scandir(place):
        if entry.name.startswith(f"{MARK}-") and _forgotten(entry):
            remove(Path(entry.path))


def _forgotten(entry: os.DirEntry[str]) -> bool:
    host, _, rest = entry.name.removeprefix(f"{MARK}-").partition("-")
    pid = rest.partition("-")[0]
    if host == _host() and pid.isdecimal():
        return not _alive(int(pid))
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > FORGOTTEN_S


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def remove(path: Path) -> None:
    """A file or a folder with all in it; one that is gone, or may not be removed, is none of ours to complain about."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        return


# -- Whole or not at all


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; it becomes `path` when the block ends well and vanishes when it does not.

    The sibling keeps the suffix of `path`, because some writers choose their format by it. durable: the bytes are on the disk
    before the name is, and the name before this returns; a writer of many files says False and calls `settle_all` once,
    before it writes the file that speaks for all.
    """
    temporary = scratch(path.parent, path.suffix)
    try:
        temporary.touch(0o644)
        yield temporary
        if durable:
            settle(temporary)
        temporary.replace(path)
        if durable:
            settle(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(home: Path) -> Iterator[Path]:
    """A folder in `home` (the same file system, so that moving is atomic) that vanishes at the end if it is still there."""
    folder = scratch(home)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk (fsync); of a link, nothing. A folder that cannot is let be."""
    if path.is_symlink() or (os.name == "nt" and path.is_dir()):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
            errno.EBADF,
        ):  # network file systems know no fsync of a folder
            raise
    finally:
        os.close(handle)


def settle_all() -> None:
    """Force everything that was written to the disk, where the system can (sync)."""
    if hasattr(os, "sync"):
        os.sync()


# -- Several files at once


def swap_in(folder: Path, home: Path, names: Sequence[str], label: str) -> None:
    """Give `home` the files `names` of the scratch `folder`, which is in `home`, all of them or none.

    One rename decides: the folder becomes `.tsss-edge.swap.LABEL`. Before it, `home` is untouched. After it, whoever comes
    first moves the files on (`finish_swap`), be it another process after a kill.
    """
    for name in names:
        settle(folder / name)
    (folder / ORDER).write_text("".join(f"{name}\n" for name in names))
    settle(folder / ORDER)
    settle(folder)
    finish_swap(home, label)
    with held(_swap(home, label), f"the files of {label}", wait_s=10.0):
        folder.replace(_swap(home, label))
        settle(home)
        _move(_swap(home, label))


def finish_swap(home: Path, label: str) -> None:
    """Move the files of an interrupted `swap_in`, if there is one. Raises: ArtifactError: the folder is not writable."""
    swap = _swap(home, label)
    if not swap.is_dir():
        return
    try:
        with held(swap, f"the files of {label}", wait_s=10.0):
            if swap.is_dir():
                _move(swap)
    except PermissionError as error:
        raise ArtifactError(
            f"{home / label}: was being replaced when the process was stopped, and {home} is not writable, so it cannot be "
            "finished; run any command on it once as the owner of the folder"
        ) from error


def _swap(home: Path, label: str) -> Path:
    return home / f"{MARK}.swap.{label}"


def _move(swap: Path) -> None:
    if (swap / ORDER).is_file():
        for name in (swap / ORDER).read_text().splitlines():
            if (swap / name).is_file():
                (swap / name).replace(swap.parent / Path(name).name)
        settle(swap.parent)
    shutil.rmtree(swap)


# -- One writer


@contextmanager
def held(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Within the block this process alone writes `path`, a file or folder that need not be there yet.

    The lock goes with the process, however it ends; the same process may take it again inside. `what` is named to whoever
    comes second, who may wait `wait_s`. A file system without locks gives none.

    Raises: BusyError: another process holds it.
    """
    place = _lock_path(path.resolve())
    if fcntl is None or _held.get(place):
        _held[place] = _held.get(place, 0) + 1
        try:
            yield
        finally:
            _held[place] -= 1
        return
    handle = _taken(place, what, time.monotonic() + wait_s)
    _held[place] = 1
    try:
        yield
    finally:
        _held[place] = 0
        place.unlink(missing_ok=True)  # while it is held, so that whoever waits sees that its file is gone
        os.close(handle)


def _lock_path(path: Path) -> Path:
    """Beside `path`, so that it is the same before a folder is made; inside a folder whose parent cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not os.access(path.parent, os.W_OK):
        return path / f"{MARK}.lock"
    return path.parent / f"{MARK}.lock.{path.name}"


def _taken(place: Path, what: str, until: float) -> int:
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
        if _lock(handle, place):
            os.truncate(handle, 0)
            os.write(
                handle, f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}".encode()
            )
            return handle
        holder = os.read(handle, 200).decode(errors="replace") or "another process"
        os.close(handle)
        if time.monotonic() >= until:
            raise BusyError(f"{what}: is being written by {holder}; wait until it ends, or choose another name")
        time.sleep(0.05)


def _lock(handle: int, place: Path) -> bool:
    """Whether the lock is ours and its file is still the one at `place`."""
    assert fcntl is not None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks on this file system
    try:
        return place.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False
