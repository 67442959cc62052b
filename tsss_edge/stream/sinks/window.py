"""Overlays -> a window on this machine's display."""

from __future__ import annotations

import os
import sys

import cv2

from tsss_edge.errors import UnavailableError
from tsss_edge.stream.frames import Result

TITLE = "tsss-edge (q quits)"


class WindowSink:
    """`display://0`. Use it from the main thread. `q`, Escape or closing the window ends the stream as Ctrl-C does."""

    wants_overlay = True

    def __init__(self) -> None:
        require_display()
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise UnavailableError(
                "display://0: this OpenCV has no windows (opencv-python-headless?); install opencv-python, or use --web"
            ) from error
        self._open = True

    def write(self, result: Result) -> None:
        """Show `result.overlay`. Raises: KeyboardInterrupt: the user closed the window."""
        assert result.overlay is not None
        cv2.imshow(TITLE, result.overlay)
        key = cv2.waitKey(1) & 0xFF
        if key in (ord("q"), 27) or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1:
            raise KeyboardInterrupt

    def close(self) -> None:
        if self._open:
            self._open = False
            cv2.destroyAllWindows()


def require_display() -> None:
    """Raise UnavailableError on a Linux machine without a display: Qt would end the whole process there."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UnavailableError(
            "display://0: no display here (DISPLAY is not set); use --web PORT, a video file, or ssh -X"
        )
