"""Results of the loop -> figures, drift, and frames worth labelling; a frame a second, and every one of a folder of pictures."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes, FieldProfile, Preprocess
from tsss_edge.backends import Backend
from tsss_edge.field.collector import Collector, CollectStatus, Offered, answer_features, pooled_features
from tsss_edge.field.drift import STEP, WINDOW, Alarm, DriftReport, DriftWatch
from tsss_edge.field.figures import Glance, Meter, Values
from tsss_edge.stream.frames import FrameResult

LOG = logging.getLogger("tsss_edge")
SAMPLE_S = 1.0  # between two samples: frames of one camera within a second show the same
THUMB_WIDTH = 160


class FieldWatch:
    """Sets `FrameResult.drift` and notes the alarms. Its thread is the loop's; `example` may be called from another.

    Args: profiles: of the engines' records, by the engine's name; None: no drift is looked for. live: the source's clock is
          that of its frames. preprocess: how engines that may take over see a frame, by name, where they see it otherwise.
    """

    def __init__(
        self,
        engine: Backend,
        profiles: Mapping[str, FieldProfile | None],
        *,
        live: bool,
        collector: Collector | None = None,
        preprocess: Mapping[str, Preprocess] | None = None,
    ) -> None:
        self._profiles, self._live, self._collector = profiles, live, collector
        self._own_classes, self._own_preprocess = engine.classes, engine.preprocess
        self._preprocesses = preprocess or {}
        self._serve(next(iter(profiles), ""), engine.classes)
        self._next_s = float("-inf")
        self._thumbs: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self.alarms: list[Alarm] = []
        self.samples = 0
        self._collected: CollectStatus | None = None

    def _serve(self, name: str, classes: Classes) -> None:
        """Watch the engine called `name` from now on, against its own profile."""
        self._name, self._classes, self._meter = name, classes, Meter(classes)
        self._preprocess = self._preprocesses.get(name, self._own_preprocess)
        # Ids of this engine -> those of the first, in whose terms frames are kept.
        self._to_own = np.full(256, IGNORE, np.uint8)
        for i, category in enumerate(classes.names):
            if category in self._own_classes.names:
                self._to_own[i] = self._own_classes.names.index(category)
        self._waiting: list[tuple[int, Glance]] = []  # samples whose figures are not taken yet
        profile = self._profiles.get(name)
        self._watch = DriftWatch(profile, self._meter.names) if profile is not None else None

    def add(self, result: FrameResult) -> None:
        """Look at a result, if a second is over since the last one that was looked at."""
        if result.classes is not None and result.engine != self._name:
            self._serve(result.engine, result.classes)
        at_s = source_seconds(result, live=self._live)
        if at_s >= self._next_s:
            self._next_s = at_s + SAMPLE_S
            self._sample(result, at_s)
        if self._watch is not None:
            result.drift = self._watch.state
        result.collected = self._collected

    def example(self, index: int) -> bytes | None:
        """A frame of the window as a small JPEG; None when it is gone."""
        thumb = self._thumbs.get(index)
        if thumb is None:
            return None
        ok, data = cv2.imencode(".jpg", thumb)
        assert ok
        return data.tobytes()

    @property
    def report(self) -> DriftReport | None:
        """What was found, with what engines before this one raised; None where no drift was looked for."""
        looked = self._watch is not None or self.alarms
        return DriftReport(samples=self.samples, alarms=tuple(self.alarms)) if looked else None

    def close(self) -> None:
        """Finish what is being kept. Safe to call twice."""
        if self._collector is not None:
            self._collector.close()

    def _sample(self, result: FrameResult, at_s: float) -> None:
        self.samples += 1
        labels = result.labels
        place = self._preprocess.place((labels.shape[0], labels.shape[1]))
        look = self._meter.look(result.logits, result.objectness, labels, place)
        self._waiting.append((result.frame.index, look))
        if self._watch is not None:
            self._remember(result)
        if self._collector is not None:
            values = self._judge()
            self._collector.offer(self._seen(result, values, at_s))
            self._collected = self._collector.status
        elif len(self._waiting) == STEP:  # the watch forms no opinion earlier
            self._judge()

    def _judge(self) -> Values:
        """Take the figures of the samples that wait, and let the watch have them -> those of the last one."""
        waiting, self._waiting = self._waiting, []
        rows = self._meter.values([look for _, look in waiting])
        for (index, _), values in zip(waiting, rows, strict=True):
            if self._watch is not None and self._watch.add(index, values):
                self._note(self._watch, index)
        return rows[-1]

    def _seen(self, result: FrameResult, values: Values, at_s: float) -> Offered:
        unknown, entropy = (float(values[self._meter.names.index(name)]) for name in ("unknown", "entropy"))
        features, labels = result.features, self._to_own[result.labels]
        return Offered(
            at_s=at_s,
            frame=result.frame.index,
            image=result.frame.image,
            labels=labels,
            features=pooled_features(features)
            if features is not None
            else answer_features(labels, result.frame.image, len(self._own_classes)),
            unknown=0.0 if np.isnan(unknown) else unknown,
            entropy=1.0 if np.isnan(entropy) else entropy,
            drift=self._watch is not None and self._watch.shows(values),
            engine=self._name,
        )

    def _remember(self, result: FrameResult) -> None:
        height, width = result.labels.shape
        size = (min(THUMB_WIDTH, width), max(1, round(height * min(1.0, THUMB_WIDTH / width))))
        self._thumbs[result.frame.index] = np.asarray(
            cv2.resize(result.frame.image, size, interpolation=cv2.INTER_NEAREST), np.uint8
        )
        if len(self._thumbs) > WINDOW:
            self._thumbs.popitem(last=False)

    def _note(self, watch: DriftWatch, index: int) -> None:
        state = watch.state
        assert state is not None
        if not state.raised:
            self.alarms[-1] = msgspec.structs.replace(self.alarms[-1], cleared=index)
            LOG.warning("frame %d: drift is over", index)
            return
        self.alarms.append(Alarm(raised=index, moved=state.moved, examples=state.examples))
        LOG.warning(
            "frame %d: drift: %s; frames that show it: %s",
            index,
            ", ".join(one.text() for one in state.moved[:3]),
            ", ".join(map(str, state.examples)),
        )


def source_seconds(result: FrameResult, *, live: bool) -> float:
    """When a frame was, by its source: of a video its own time, of a camera the capture; a picture of a folder is a second."""
    frame = result.frame
    if frame.time_s is not None:
        return frame.time_s
    return frame.captured if live else float(frame.index)
