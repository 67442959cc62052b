"""Results -> picture files: lossless index PNGs (class ids, VOC palette), or JPEGs of the overlay."""

from __future__ import annotations

from pathlib import Path

import cv2

from tsss_edge.data.voc import write_mask
from tsss_edge.errors import DataError
from tsss_edge.files import write_bytes
from tsss_edge.stream.frames import Result
from tsss_edge.stream.uris import printf_pattern


class PictureSink:
    """`masks/%06d.png` (`.png`: the class ids) or `seen/%06d.jpg` (`.jpg`: the overlay), numbered by frame index.

    A name without a number field takes one picture only: a second one is a DataError, not an overwrite.
    """

    def __init__(self, pattern: str) -> None:
        path = Path(pattern)
        self._folder, self._name = path.parent, path.name
        self._field = printf_pattern(self._name)
        self.wants_overlay = path.suffix.lower() != ".png"
        self._written = 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self._folder}: cannot write there ({error.strerror})") from error

    def write(self, result: Result) -> None:
        """Write one picture. Raises: DataError: not writable, or a second picture for one name."""
        if self._field is None and self._written:
            raise DataError(
                f"{self._folder / self._name}: one name for several frames; use {self._folder}/%06d{Path(self._name).suffix}"
            )
        path = self._path(result.frame.index)
        try:
            self._save(path, result)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
        self._written += 1

    def _path(self, index: int) -> Path:
        if self._field is None:
            return self._folder / self._name
        return self._folder / self._name.replace(self._field, self._field.replace("i", "d") % index, 1)

    def _save(self, path: Path, result: Result) -> None:
        if not self.wants_overlay:
            write_mask(path, result.labels)
            return
        assert result.overlay is not None
        ok, data = cv2.imencode(".jpg", result.overlay, [cv2.IMWRITE_JPEG_QUALITY, 92])
        assert ok
        write_bytes(path, data.tobytes())

    def close(self) -> None:
        """Nothing: every picture is whole when it is written."""
