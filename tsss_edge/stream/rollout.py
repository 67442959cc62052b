"""`--shadow NEW`: the new engine beside the old one, into its place when asked or when the rules say so, and back when a limit breaks.

Everything slow (opening, closing) is on a thread of its own. The swap itself is one assignment between two frames
(`engine_slot.py`). How far it is stands in NEW.rollout.json, so that a restarted stream goes on with the engine that was in service.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from tsss_edge.backends import Backend
from tsss_edge.field.rules import Phase, RolloutRules, RolloutStatus, Wish, load_status, save_status, take_wish
from tsss_edge.files import sha256_file
from tsss_edge.stream.engine_slot import EngineSlot, Served
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.guarded import GuardedStages
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.shadow import ShadowWatch

LOG = logging.getLogger("tsss_edge")
CHECK_EVERY = 10  # frames between two looks at wishes and rules
SAVE_EVERY = 50  # looks between two writes of the figures
FEW = 30  # frames that an age is judged on


@dataclass(frozen=True)
class RolloutPlan:
    """Which engine, by which rules, and how engines are opened: for service, and as a shadow on one thread."""

    old: Path
    new: Path
    names: tuple[str, str]  # of both, in results and reports; they differ
    rules: RolloutRules
    open_served: Callable[[Path], Served]
    open_shadow: Callable[[Path], Backend]


class Rollout:
    """Its `add` is for the loop's thread."""

    def __init__(self, plan: RolloutPlan, slot: EngineSlot, recorder: Recorder) -> None:
        self._plan, self._slot, self._recorder = plan, slot, recorder
        self._lock = threading.RLock()
        self._old = slot.current
        self._new: Served | None = None
        self._shadow: ShadowWatch | None = None
        self._opening: list[threading.Thread] = []
        self._ages: deque[float] = deque(maxlen=1000)  # of the new engine's masks
        self._age_before: float | None = None
        self._seen = self._looks = self._failures = 0
        self._served_new = 0  # frames since the swap
        before = load_status(plan.new)
        self.status = RolloutStatus(
            phase="shadow", old=plan.names[0], new=plan.names[1], new_sha256=sha256_file(plan.new)
        )
        if before is not None and before.phase in ("promoted", "settled"):
            self._open_or_stay(f"in service before the restart ({before.phase})")
        else:
            if before is not None and before.phase == "back":
                self.status = msgspec.structs.replace(self.status, phase="back", reason=before.reason)
            self._watch(plan.new)
        self._save()

    def add(self, result: FrameResult) -> None:
        """Take a result; now and then look at wishes and limits."""
        classes = result.classes or self._slot.current.backend.classes
        with self._lock:  # whoever puts another shadow in its place closes this one afterwards
            if self._shadow is not None:
                self._shadow.offer(result, classes)
        if result.engine == self._plan.names[1]:
            self._served_new += 1
            self._ages.append(result.age_ms)
            if self.status.swapped_at is None:
                self._change(swapped_at=result.frame.index)
        self._seen += 1
        if self._seen % CHECK_EVERY == 0:
            self._look()

    def close(self) -> None:
        """Wait for what is being opened, and write where things stand. Safe to call twice."""
        for thread in self._opening:
            thread.join()
        if self._shadow is not None:
            self._shadow.close()
            self._refresh()
            self._shadow = None
        self._save()

    # -- Looks

    def _look(self) -> None:
        self._refresh()
        self._looks += 1
        phase = self.status.phase
        opening = phase == "opening" or (phase in ("shadow", "back") and self._busy)
        wanted = None if opening else take_wish(self._plan.new)  # it waits until the engine is open
        if phase in ("shadow", "back") and (why := self._why_promote(wanted)):
            self._begin(why)
        elif phase in ("promoted", "settled") and (why := self._why_back(wanted)):
            self._go_back(why)
        elif phase == "promoted" and self._served_new >= self._plan.rules.back.frames:
            self._settle()
        elif self._looks % SAVE_EVERY == 0:
            self._save()

    def _why_promote(self, wanted: Wish | None) -> str:
        if wanted == "promote":
            return "asked by promote"
        rule, shadow = self._plan.rules.promote, self._shadow
        if rule is None or shadow is None or self.status.phase == "back" or shadow.failures:
            return ""
        agreement, latency = shadow.agreement, shadow.percentile("latency_ms", 95)
        if shadow.compared < rule.frames or agreement is None or agreement < rule.agreement:
            return ""
        if rule.latency_ms is not None and (latency is None or latency > rule.latency_ms):
            return ""
        return f"by rule: agreement {agreement:.4f} on {shadow.compared} frames"

    def _why_back(self, wanted: Wish | None) -> str:
        if wanted == "back":
            return "asked by promote --back"
        if self.status.phase == "settled":
            return ""
        rule, shadow = self._plan.rules.back, self._shadow
        agreement = shadow.agreement if shadow is not None and shadow.compared >= FEW else None
        if agreement is not None and agreement < rule.agreement:
            return f"agreement with the old engine {agreement:.4f}, allowed {rule.agreement:g}"
        if len(self._ages) < FEW:
            return ""
        age = float(np.percentile(self._ages, 95))
        if rule.age_ms is not None and age > rule.age_ms:
            return f"frame age p95 {age:.1f} ms, allowed {rule.age_ms:g}"
        if self._age_before is not None and age > rule.age_ratio * self._age_before:
            return f"frame age p95 {age:.1f} ms, {age / self._age_before:.1f} times that before, allowed {rule.age_ratio:g}"
        return ""

    # -- Changes

    def _begin(self, why: str) -> None:
        """Open the new engine on a thread of its own; frames go on meanwhile."""
        if self._busy:
            return
        self._change(phase="opening", reason=why)
        self._open("open engine", self._open_or_stay, why)

    @property
    def _busy(self) -> bool:
        """Whether an engine is being opened."""
        return any(thread.is_alive() for thread in self._opening)

    def _open(self, name: str, what: Callable[..., None], *arguments: object) -> None:
        """On a thread of its own, which `close` waits for."""
        thread = threading.Thread(target=what, args=arguments, name=name)
        with self._lock:
            self._opening = [*(other for other in self._opening if other.is_alive()), thread]
            thread.start()

    def _open_or_stay(self, why: str) -> None:
        try:
            self._open_and_swap(why)
        except Exception as error:  # the old engine goes on, whatever is wrong with the new one
            self._change(phase="back", reason=f"could not be opened: {error}")
            LOG.warning("%s: could not be put into service: %s", self._plan.names[1], error)

    def _open_and_swap(self, why: str) -> None:
        opened = self._plan.open_served(self._plan.new)
        new = Served(self._plan.names[1], opened.backend, GuardedStages(opened, self._old, self._fail))
        ages = self._recorder.age.recent()
        self._age_before = float(np.percentile(ages, 95)) if ages.size else None
        self._ages.clear()
        self._served_new, self._failures, self._new = 0, 0, new
        try:
            with self._lock:  # one that fails at once must be in service already for `_go_back`
                self._slot.swap(new, keep=True)
                self._change(phase="promoted", reason=why, swapped_at=None)
        except ValueError:
            new.close()
            raise
        LOG.warning("%s is in service (%s)", new.name, why)
        self._watch(self._plan.old)

    def _fail(self, error: Exception) -> None:
        """On the loop's threads: the new engine raised an error, the old one does the frame."""
        with self._lock:
            self._failures += 1
            self.status = msgspec.structs.replace(self.status, failures=self._failures)
        if self._failures > self._plan.rules.back.failures:
            self._go_back(f"failed {self._failures} times: {error}")

    def _go_back(self, why: str) -> None:
        with self._lock:
            if self.status.phase not in ("promoted", "settled") or self._new is None:
                return
            new, self._new = self._new, None
            self._slot.swap(self._old, keep=True)
            self._change(phase="back", reason=why)
        self._slot.drop(new)
        LOG.warning("%s went out of service, %s is back: %s", new.name, self._old.name, why)
        self._open("open shadow", self._watch, self._plan.new)

    def _settle(self) -> None:
        """Probation is over. The old engine stays open for `promote --back`."""
        self._change(phase="settled", reason=f"{self._served_new} frames within the limits")
        LOG.warning("%s stays in service: %s", self._plan.names[1], self.status.reason)

    def _watch(self, path: Path) -> None:
        """Compare with the engine of `path` from now on; not if it has come into service while it was opened."""
        shadow: ShadowWatch | None
        try:
            shadow = ShadowWatch(self._plan.open_shadow(path))
        except Exception as error:
            LOG.warning("%s: cannot run as a shadow: %s", path.name, error)
            shadow = None
        with self._lock:
            serving = self._plan.new if self.status.phase in ("promoted", "settled") else self._plan.old
            before, self._shadow = (shadow, self._shadow) if path == serving else (self._shadow, shadow)
        if before is not None:
            before.close()

    def _refresh(self) -> None:
        """Put the shadow's figures into the status."""
        if (shadow := self._shadow) is None:
            return
        agreement = shadow.agreement
        service, other = shadow.mious
        figures = {
            "compared": shadow.compared,
            "agreement": None if agreement is None else round(agreement, 6),
            "agreement_min": round(shadow.lowest, 6) if shadow.compared else None,
            "beyond": shadow.beyond,
            "latency_p50_ms": shadow.percentile("latency_ms", 50),
            "latency_p95_ms": shadow.percentile("latency_ms", 95),
            "age_p95_ms": shadow.percentile("age_ms", 95),
            "miou_service": service,
            "miou_other": other,
        }
        with self._lock:
            self.status = msgspec.structs.replace(self.status, **figures)
        self._recorder.rollout = self.status

    def _change(self, **changes: Phase | str | int | None) -> None:
        with self._lock:
            self.status = msgspec.structs.replace(self.status, **changes)
            self._recorder.rollout = self.status
            self._save()

    def _save(self) -> None:
        try:
            save_status(self._plan.new, self.status)
        except OSError as error:  # a full disk ends no stream, and undoes no swap
            LOG.warning("%s: how far it is cannot be written: %s", self._plan.names[1], error)
