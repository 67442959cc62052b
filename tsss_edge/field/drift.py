"""Figures of frames as they come + the engine's profile -> has the world changed, and which figure says so?

The statistic is the distance of Kolmogorov and Smirnov: the largest gap between the share of frames of the last `WINDOW`
samples with a figure below x and that share in the profile. Its limit follows from both sample sizes (Smirnov, 1948), so
nothing is tuned for a set. Drift is raised when a figure stays over its limit, and cleared when all stay well below theirs.
How it was chosen among three: docs/results/loop.md.
"""
# Letters: F figure, W window, Q points of a profile.

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import FieldProfile, Struct
from tsss_edge.field.figures import QUANTILES, Values

WINDOW = 150  # samples
STEP = 10  # samples between two looks at the window
ALPHA = 1e-6  # chance that one figure of one window passes the limit though nothing changed
RAISE_AFTER, CLEAR_AFTER = 2, 5  # looks in a row
CLEAR_BELOW = 0.8  # of the limit
WORSE_IF_LOWER = frozenset({"neighbours"})  # a profile of single pictures has no neighbours: only flicker counts
SHOWN = 4  # example frames
TAIL = 9 * (QUANTILES - 1) // 10  # place of the nine-tenths quantile in a profile


class Moved(Struct, frozen=True):
    """One figure: how far it moved from the profile (1: the limit), and its means then and now."""

    figure: str
    score: float
    profile: float
    now: float

    def text(self) -> str:
        """`unknown 0.021 -> 0.117`."""
        return f"{self.figure} {self.profile:.3f} -> {self.now:.3f}"


class Drift(Struct, frozen=True):
    """What a watch thinks. `moved`: figures over their limit, the farthest first; `examples`: frames that show the first."""

    raised: bool
    score: float  # of the figure that moved farthest; 1: its limit
    figure: str
    since: int | None  # index of the frame at which drift was raised
    moved: tuple[Moved, ...] = ()
    examples: tuple[int, ...] = ()
    alarms: int = 0  # times that drift was raised


class Alarm(Struct, frozen=True):
    """One time that drift was raised: frame indices, what had moved, and frames that show it."""

    raised: int
    moved: tuple[Moved, ...]
    examples: tuple[int, ...]
    cleared: int | None = None


class DriftReport(Struct, frozen=True):
    """Of a whole stream."""

    samples: int  # frames whose figures were taken
    alarms: tuple[Alarm, ...]


class DriftWatch:
    """Feed it the figures of each sampled frame. `state` is None until the first window is full.

    Args: names: of the figures, in their order.
    """

    def __init__(self, profile: FieldProfile, names: Sequence[str], *, window: int = WINDOW, step: int = STEP) -> None:
        known = [n for n, name in enumerate(names) if name in profile.quantiles]
        self._names = [names[n] for n in known]
        self._columns = np.array(known, np.intp)
        self._points = np.array([profile.quantiles[name] for name in self._names], np.float32).T.reshape(-1, len(known))
        self._means = self._points.mean(axis=0)
        self._shares = below_points(self._points, self._points).mean(axis=1)
        self._lower_only = np.array([name in WORSE_IF_LOWER for name in self._names], bool)
        # Counts of the window, kept up with each look: to count all its rows again would cost more.
        self._counts = np.zeros((2, *self._points.shape), np.int32)
        self._known = np.zeros(len(known), np.int32)
        self._limit = limit(window, profile.pictures)
        self._window, self._step = window, step
        self._rows: deque[tuple[int, Values]] = deque()  # of the window, and those that came after the last look
        self._samples = self._over = self._under = 0
        self._moving: list[tuple[int, bool]] = []  # figures for which drift is raised, and whether they rose
        self.state: Drift | None = None

    def add(self, index: int, values: Values) -> bool:
        """Take the figures of frame `index`. Returns whether drift was raised or cleared by it."""
        self._rows.append((index, values[self._columns]))
        self._samples += 1
        if self._samples % self._step:
            return False
        self._turn()
        if len(self._rows) < self._window:
            return False
        before = self.state is not None and self.state.raised
        self.state = self._look(index)
        return self.state.raised != before

    def _turn(self) -> None:
        """Count what came since the last look, and take out what left the window."""
        self._count([row for _, row in list(self._rows)[-self._step :]], 1)
        self._count([self._rows.popleft()[1] for _ in range(len(self._rows) - self._window)], -1)

    def _count(self, rows: list[Values], sign: int) -> None:
        if rows:
            table = np.stack(rows)
            self._counts += sign * below_points(table, self._points).sum(axis=1, dtype=np.int32)
            self._known += sign * (~np.isnan(table)).sum(axis=0, dtype=np.int32)

    def shows(self, values: Values) -> bool:
        """Whether a frame is one of those for which drift is raised: a figure that moved is beyond nine tenths of the profile,
        on the side to which it moved."""
        for n, rising in self._moving:
            value, points = float(values[self._columns[n]]), self._points[:, n]
            if (value > points[TAIL]) if rising else (value < points[QUANTILES - 1 - TAIL]):
                return True
        return False

    def _look(self, index: int) -> Drift:
        table = np.stack([row for _, row in self._rows])  # (W,F)
        scores, means = self._scores(), np.nansum(table, axis=0) / np.maximum(1, self._known)
        top = int(scores.argmax())
        self._over = self._over + 1 if scores[top] > 1 else 0
        self._under = self._under + 1 if scores[top] < CLEAR_BELOW else 0
        old = self.state or Drift(raised=False, score=0.0, figure="", since=None)
        raised = self._under < CLEAR_AFTER if old.raised else self._over >= RAISE_AFTER
        order = [int(n) for n in np.argsort(-scores) if scores[n] > 1]
        if order and raised:  # while it is only fading, what had moved last still counts
            self._moving = [(n, bool(means[n] > self._means[n])) for n in order]
        elif not raised:
            self._moving = []
        return Drift(
            raised=raised,
            score=round(float(scores[top]), 4),
            figure=self._names[top],
            since=(old.since if old.raised else index) if raised else None,
            moved=tuple(self._moved(n, float(scores[n]), float(means[n])) for n in order),
            examples=self._examples(order[0], table[:, order[0]]) if order else (),
            alarms=old.alarms + (raised and not old.raised),
        )

    def _scores(self) -> NDArray[np.float64]:
        """Distances over their limit, (F,); 0 where too few frames have the figure."""
        above, below = gaps(self._counts / np.maximum(1, self._known), self._shares)
        worse = np.where(self._lower_only, above, np.maximum(above, below)) / self._limit
        return np.where(self._known >= self._window // 2, worse, 0.0)

    def _moved(self, n: int, score: float, now: float) -> Moved:
        then = float(self._means[n])
        return Moved(figure=self._names[n], score=round(score, 4), profile=round(then, 5), now=round(now, 5))

    def _examples(self, n: int, column: NDArray[np.float32]) -> tuple[int, ...]:
        """The frames that went farthest the way the figure moved."""
        filled = np.nan_to_num(column, nan=float(self._means[n]))
        rising = np.nanmean(column) > self._means[n]
        order = np.argsort(-filled if rising else filled, kind="stable")[:SHOWN]
        return tuple(self._rows[int(i)][0] for i in order)


def below_points(values: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(N,F) values, (Q,F) points -> (2,N,Q,F): whether a value is at most a point, and whether it is less. NaN is neither."""
    return np.stack([values[:, None] <= points, values[:, None] < points])


def gaps(
    sample: NDArray[np.floating], profile: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares (2,Q,F) of values at and below each point -> how far the sample's lies above and below the profile's, (F,) each.

    The profile's share is a step function, so the gap is largest at one of its steps or just before one.
    """
    gap = (sample - profile).reshape(-1, sample.shape[-1])
    return np.maximum(gap.max(axis=0), 0.0), np.maximum(-gap.min(axis=0), 0.0)


def distances(
    sample: NDArray[np.floating], profile: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One-sided Kolmogorov-Smirnov distances of a sample (W,F) from a profile (Q,F), ascending in each column: (F,) each."""
    known = np.maximum(1, (~np.isnan(sample)).sum(axis=0))
    counts = below_points(sample, profile).sum(axis=1)
    return gaps(counts / known, below_points(profile, profile).mean(axis=1))


def limit(window: int, pictures: int, alpha: float = ALPHA) -> float:
    """The distance that two samples of one distribution pass with probability `alpha`: sqrt(-ln(alpha / 2) / 2) *
    sqrt((n + m) / (n m)) (Smirnov, Annals of Mathematical Statistics 19, 1948, asymptotic)."""
    return math.sqrt(-math.log(alpha / 2) / 2) * math.sqrt((window + pictures) / (window * pictures))
