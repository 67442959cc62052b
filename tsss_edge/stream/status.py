"""One line on a terminal that says how the stream goes."""

from __future__ import annotations

import sys
import time

from tsss_edge.stream.frames import Result, Source
from tsss_edge.stream.report import Recorder

PERIOD_S = 0.5


class StatusLine:
    """Rewrites itself twice a second on stderr; silent where that is no terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._next = 0.0

    def update(self, source: Source, recorder: Recorder, result: Result) -> None:
        """Show the numbers as of `result`, unless that was done a moment ago."""
        if not self._shown or (now := time.monotonic()) < self._next:
            return
        self._next = now + PERIOD_S
        sys.stderr.write(f"\r\x1b[K{status_text(source, recorder, result)}")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the cursor on a line of its own."""
        if self._shown and self._next:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def status_text(source: Source, recorder: Recorder, result: Result) -> str:
    """`STREAMING  frame 120/250  31.2 frames/s  age 14 ms  3 dropped  agreement 0.998`."""
    total = f"/{source.length}" if source.length else ""
    parts = [
        source.state,
        f"frame {result.frame.index + 1}{total}",
        f"{recorder.fps:.1f} frames/s",
        f"age {result.age_ms:.0f} ms",
        f"{recorder.dropped} dropped",
        *(f"{name} {value:.4g}" for name, value in (result.parity or {}).items() if name != "frame"),
    ]
    return "  ".join(parts)
