"""An address and a SHA-256 -> a file on disk: resumed where it stopped, checked before it gets its name."""

from __future__ import annotations

import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tsss_edge.errors import DataError
from tsss_edge.files import sha256_file

BLOCK = 1 << 20
TIMEOUT_S = 30.0
TRIES = 5  # without a byte gained in between
FIRST_WAIT_S = 1.0  # before the second try; doubled each time


def download(
    url: str,
    path: Path,
    *,
    sha256: str,
    size: int,
    advance: Callable[..., None] = lambda _: None,
    first_wait_s: float = FIRST_WAIT_S,
) -> None:
    """Fetch `url` to `path`; a file that is there and right is kept, `path`.part is continued.

    Args:   size: bytes of the whole file. advance: called with the number of bytes gained.
    Raises: DataError: not http(s), no connection after some tries, refused, no room on disk, or not the expected file
            (what came is then deleted).
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: expected an http or https address")
    if path.is_file() and path.stat().st_size == size and sha256_file(path) == sha256:
        return
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    require_room(part.parent, size - _length(part))
    _fill(url, part, size, advance, first_wait_s)
    found = sha256_file(part)
    if found != sha256 or _length(part) != size:
        length = _length(part)
        part.unlink()
        raise DataError(
            f"{url}: expected {size} bytes with SHA-256 {sha256}, got {length} with {found}; deleted, try again or another mirror"
        )
    part.replace(path)


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def require_room(folder: Path, need: int) -> None:
    """Raise DataError when the disk of `folder` has fewer than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DataError(f"{folder}: {need} bytes are to come, {free} are free; make room or choose another disk")


def _fill(url: str, part: Path, size: int, advance: Callable[..., None], wait_s: float) -> None:
    """Append to `part` until it has `size` bytes; a broken connection is tried again, later each time without progress."""
    fruitless = 0
    advance(_length(part))
    while (before := _length(part)) < size:
        try:
            _continue(url, part, size, advance)
            reason: Exception | str = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                raise DataError(
                    f"{url}: the server answered {error.code} {error.reason}; try another mirror"
                ) from error
            reason = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = error
        fruitless = 0 if _length(part) > before else fruitless + 1
        if fruitless >= TRIES:
            raise DataError(
                f"{url}: nothing came in {TRIES} tries ({reason}); run it again to continue, or use a mirror"
            )
        if fruitless:
            time.sleep(wait_s * 2 ** (fruitless - 1))


def _continue(url: str, part: Path, size: int, advance: Callable[..., None]) -> None:
    """One request from where `part` ends; a server that cannot do that starts from zero."""
    have = _length(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        if have and not _continues(answer, have):
            advance(-have)
            have = 0
        with part.open("ab" if have else "wb") as file:
            for block in _blocks(answer, size - have):
                file.write(block)
                advance(len(block))


def _continues(answer: Any, have: int) -> bool:
    span = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return answer.status == 206 and span is not None and int(span[1]) == have


def _blocks(answer: Any, limit: int) -> Iterator[bytes]:
    """What the server sends, at most one block more than expected: a wrong file must not fill the disk."""
    while limit > 0 and (block := answer.read(BLOCK)):
        limit -= len(block)
        yield block
