"""Pictures for whoever watches: painted on a thread of their own, and only while somebody does."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Callback = Callable[[bytes], None]


class Broadcast(ABC):
    """Who changes what is to be seen calls `_touch`; subscribers are called, on this thread, with each new JPEG.

    A subclass calls `__init__` when it is ready to paint.
    Args: name: of the thread. pause_s: between two pictures at least.
    """

    def __init__(self, name: str, *, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self._changed = threading.Condition()
        self._dirty = self._closed = False
        self._subscribers: dict[int, Callback] = {}
        self.painted = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    def _begin(self) -> Callable[[], bytes] | None:
        """What paints the picture of this moment, None where there is none; called within the lock `_changed`."""

    @property
    def watchers(self) -> int:
        """How many there are now."""
        return len(self._subscribers)

    def subscribe(self, key: int, callback: Callback) -> None:
        """Have `callback(jpeg)` called for each picture from now on, beginning with the one that is there."""
        with self._changed:
            self._subscribers[key] = callback
            self._touch()

    def unsubscribe(self, key: int) -> None:
        with self._changed:
            self._subscribers.pop(key, None)

    def close(self) -> None:
        """Stop painting; each subscriber gets an empty picture, which ends its stream. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=5.0)
        with self._changed:
            callbacks = list(self._subscribers.values())
            self._subscribers.clear()
        for callback in callbacks:
            callback(b"")

    def _touch(self) -> None:
        """There is something new; within the lock."""
        self._dirty = True
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self._dirty and self._subscribers))
                if self._closed:
                    return
                paint, self._dirty = self._begin(), False
            if paint is None:
                continue
            jpeg = paint()
            self.painted += 1
            with self._changed:
                callbacks = list(self._subscribers.values())
            for callback in callbacks:
                callback(jpeg)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=self._pause_s)


def jpeg_of(image: NDArray[np.uint8], quality: int) -> bytes:
    """(H,W,3) BGR as a JPEG."""
    ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return data.tobytes()
