"""SearchReport -> one picture (SVG): mIoU drop against latency of every graph that was tried, and which was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from tsss_edge.calib.search import SearchReport, Step

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 52  # margins
TICKS = 5
COLOURS = {"chosen": "#c8102e", "front": "#1f6f8b", "other": "#8a949a"}  # told apart by size too

Scale = Callable[[float], float]


def pareto_svg(report: SearchReport) -> str:
    """Drop in points (up is worse; the whisker ends at `drop_high`) against median milliseconds, the budget as a line."""
    steps = report.steps
    drops = [0.0, report.max_drop or 0.0, *(v for s in steps for v in (s.score.drop, s.score.drop_high))]
    times = [0.0, *(s.latency_ms for s in steps)]
    x, y = _scale(times, LEFT, WIDTH - RIGHT), _scale(drops, HEIGHT - BOTTOM, TOP)
    front = {step.name for step in pareto_front(steps)}
    parts = [_head(report), *_x_axis(times, x), *_y_axis(drops, y)]
    if report.max_drop is not None:
        parts.append(_line(LEFT, y(report.max_drop), WIDTH - RIGHT, y(report.max_drop), COLOURS["chosen"], "6 4"))
        parts.append(_text(WIDTH - RIGHT, y(report.max_drop) - 5, f"budget {report.max_drop:.2f}", "end"))
    for step in steps:
        kind = "chosen" if step.name == report.chosen else "front" if step.name in front else "other"
        parts += _point(step, x(step.latency_ms), y, kind)
    return "\n".join([*parts, "</svg>", ""])


def pareto_front(steps: Sequence[Step]) -> list[Step]:
    """Steps that no other beats in both latency and drop, fastest first."""
    front: list[Step] = []
    for step in sorted(steps, key=lambda s: (s.latency_ms, s.score.drop)):
        if not front or step.score.drop < front[-1].score.drop:
            front.append(step)
    return front


def _head(report: SearchReport) -> str:
    title = f"{report.held_back} held-back training pictures, {report.runs_on}, float mIoU {report.miou_float:.2f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + _text(LEFT, 24, title, "start")
    )


def _scale(values: Sequence[float], start: float, end: float) -> Scale:
    """Values -> pixels, with a tenth of the span to spare above the largest."""
    low, high = min(values), max(values)
    span = (high - low) * 1.1 or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def ticks(values: Sequence[float]) -> list[float]:
    """About `TICKS` round numbers (1, 2 or 5 times a power of ten apart) inside the values' range."""
    low, high = min(values), max(values)
    raw = (high - low or 1.0) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _x_axis(values: Sequence[float], x: Scale) -> list[str]:
    base = HEIGHT - BOTTOM
    parts = [_line(LEFT, base, WIDTH - RIGHT, base, "#333")]
    parts += [_text(x(v), base + 18, f"{v:g}", "middle") for v in ticks(values)]
    return [*parts, _text((LEFT + WIDTH) / 2, HEIGHT - 12, "network alone, median milliseconds", "middle")]


def _y_axis(values: Sequence[float], y: Scale) -> list[str]:
    parts = [_line(LEFT, y(v), WIDTH - RIGHT, y(v), "#ddd") for v in ticks(values)]
    parts += [_text(LEFT - 8, y(v) + 4, f"{v:.2g}", "end") for v in ticks(values)]
    return [*parts, _text(LEFT, TOP - 8, "mIoU drop, points (up is worse)", "start")]


def _point(step: Step, x: float, y: Scale, kind: str) -> list[str]:
    colour, radius = COLOURS[kind], 4 if kind == "other" else 6
    kept = f", float: {', '.join(step.float_nodes)}" if step.float_nodes else ""
    words = escape(f"{step.name}: drop {step.score.drop:.2f}, {step.latency_ms:.2f} ms{kept}")
    at = y(step.score.drop)
    return [
        _line(x, at, x, y(step.score.drop_high), colour),
        f'<circle cx="{x:.1f}" cy="{at:.1f}" r="{radius}" fill="{colour}"><title>{words}</title></circle>',
        _text(x + 8, at + 4, step.name, "start"),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "none") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-dasharray="{dashes}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222">{escape(words)}</text>'
