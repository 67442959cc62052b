"""This package, as it is installed or checked out -> its wheel, without a build back end or a network.

A pure Python wheel is a zip with a `.dist-info` folder (packaging.python.org, "Binary distribution format"). The metadata is
the installed one, so that names, extras and entry points are those of pyproject.toml.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import tsss_edge
from tsss_edge.config import shared_folder
from tsss_edge.errors import UnavailableError
from tsss_edge.files import atomic_path

DISTRIBUTION = "tsss-edge"
WHEEL_TEXT = "Wheel-Version: 1.0\nGenerator: tsss-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold: equal content gives an equal file
SHARED: tuple[Literal["export", "calib"], ...] = ("export", "calib")


def write_wheel(folder: Path, *, more: Mapping[str, Path] | None = None) -> Path:
    """Write `tsss_edge-VERSION-py3-none-any.whl` into `folder`, equal bytes for equal content.

    Args:   more: further files by their name in the wheel (built CUDA kernels).
    Raises: UnavailableError: the package runs without being installed, so nobody knows its metadata.
    """
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError(
            f"{DISTRIBUTION} is not installed, so its wheel has no metadata; `pip install .`"
        ) from error
    stem = f"tsss_edge-{tsss_edge.__version__}"
    files = {name: path.read_bytes() for name, path in (*_content(), *(more or {}).items())}
    info = f"{stem}.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        files[f"{info}/{name}"] = (distribution.read_text(name) or "").encode()
    files[f"{info}/WHEEL"] = WHEEL_TEXT.encode()
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    path = folder / f"{stem}-py3-none-any.whl"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
    return path


def _content() -> Iterator[tuple[str, Path]]:
    """(name in the wheel, file), sorted."""
    package = Path(tsss_edge.__file__).parent
    for path in sorted(package.rglob("*")):
        parts = path.relative_to(package).parts
        if path.is_file() and "__pycache__" not in parts and "_share" not in parts:
            yield f"tsss_edge/{'/'.join(parts)}", path
    for name in SHARED:
        for path in sorted(shared_folder(name).glob("*")):
            if path.is_file():
                yield f"tsss_edge/_share/{name}/{path.name}", path


def _record(files: dict[str, bytes], own_name: str) -> bytes:
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    return ("\n".join([*rows, f"{own_name},,"]) + "\n").encode()
