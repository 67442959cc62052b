"""How the stream goes, on stderr: one line that rewrites itself on a terminal, elsewhere a line when the source changes."""

from __future__ import annotations

import sys
import threading

from tsss_edge.stream.frames import Source
from tsss_edge.stream.report import Recorder

PERIOD_S = 0.5


class StatusLine:
    """Runs on a thread of its own, so that a source that stalls is told too."""

    def __init__(self, source: Source, recorder: Recorder) -> None:
        self._source = source
        self._recorder = recorder
        self._terminal = sys.stderr.isatty()
        self._state = "STREAMING"  # no news
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status line", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and clear the line. Safe to call twice."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(PERIOD_S):
            if self._terminal:
                _write(f"\r\x1b[K{status_text(self._source, self._recorder)}")
            elif self._source.live and (state := self._source.state) != self._state:
                _write(f"{status_text(self._source, self._recorder)}\n")
                self._state = state
        if self._terminal:
            _write("\r\x1b[K")


def status_text(source: Source, recorder: Recorder) -> str:
    """`STREAMING  frame 120/250  31.2 frames/s  age 14 ms  3 dropped  agreement 0.998`."""
    parts = [source.state]
    if (last := recorder.last) is not None:
        total = f"/{source.length}" if source.length else ""
        parts += [f"frame {last.frame + 1}{total}", f"{recorder.fps:.1f} frames/s", f"age {last.age_ms:.0f} ms"]
        parts += [f"{recorder.dropped} dropped"]
        parts += [f"{name} {value:.4g}" for name, value in last.checks.items()]
    return "  ".join(parts)


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
