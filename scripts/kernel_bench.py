"""The CPU kernels beside what one would write without them -> docs/results/kernels.md and .json. One core.

    python scripts/kernel_bench.py --out docs/results/kernels.md
    python scripts/kernel_bench.py --network "CamVid edge-m" runs/camvid-m/best.pt camvid/JPEGImages --out ...

Logits are smooth random fields, or those of a trained network on its own pictures. Every kernel and its rival run in
alternating rounds of this process, so that the ratios hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import cv2
import numba
import numpy as np
import torch
from numpy.typing import NDArray
from pages import TOOL, command, met, table, today, watch_machine, write_page

from tsss_edge.artifacts import Checkpoint, Placement, Preprocess, Struct, voc_color
from tsss_edge.bench.conditions import Machine, notes_on
from tsss_edge.bench.timing import alternate
from tsss_edge.data.voc import IMAGE_SUFFIXES, read_image
from tsss_edge.kernels.overlay import OverlayPlan
from tsss_edge.kernels.preprocess import PreprocessPlan
from tsss_edge.kernels.upsample_argmax import UpsampleArgmaxPlan

CLASSES, GRID = 21, (64, 64)  # VOC, 512x512 input
FRAMES = ((512, 512), (720, 1280), (1080, 1920))
FIELDS = {"smooth field": 8.0, "busy field": 4.0}  # blur of the classes' noise, in grid points
PICTURES = 8
SECONDS, ROUNDS = 0.8, 4
TARGET_MS = 6.0  # upsample_argmax, 21 classes, to 1080p


class KernelRow(Struct, frozen=True):
    """One kernel on one frame size. Milliseconds are medians; `ratio` is rival / ours."""

    kernel: str
    case: str
    frame_hw: tuple[int, int]
    ours_ms: float
    ours_best_ms: float
    rival: str
    rival_ms: float
    ratio: float
    note: str


class KernelBench(Struct, frozen=True):
    """Everything that was measured, and where."""

    rows: tuple[KernelRow, ...]
    date: str
    command: str
    machine: Machine
    notes: tuple[str, ...]
    tool: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs=3, action="append", default=[], metavar=("NAME", "CKPT", "PICTURES"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    watched = watch_machine(1)
    logits = {name: [random_field(blur)] for name, blur in FIELDS.items()}
    for name, checkpoint, pictures in args.network:
        logits[name] = network_logits(Path(checkpoint), Path(pictures))
    rows = [upsample_row(case, grids, hw) for case, grids in logits.items() for hw in FRAMES]
    rows += [overlay_row(hw, logits["smooth field"][0]) for hw in FRAMES[1:]]
    rows += [preprocess_row(hw) for hw in FRAMES[1:]]
    machine = watched()
    bench = KernelBench(
        rows=tuple(rows),
        date=today(),
        command=command("kernel_bench.py"),
        machine=machine,
        notes=tuple(notes_on(machine)),
        tool=TOOL,
    )
    write_page(args.out, page(bench), bench)
    sys.stdout.write(page(bench))


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def random_field(blur: float) -> NDArray[np.float32]:
    """(K,h,w) logits: blurred noise a class, a background that wins more often, and a little noise a grid point."""
    rng = np.random.default_rng(0)
    field = rng.standard_normal((CLASSES, *GRID)).astype(np.float32)
    for plane in field:
        plane[:] = cv2.GaussianBlur(plane, (0, 0), blur)
        plane /= plane.std()
    field[0] += 1.0
    return 6 * field + 0.3 * rng.standard_normal(field.shape).astype(np.float32)


def network_logits(checkpoint: Path, pictures: Path) -> list[NDArray[np.float32]]:
    """Logits of a trained network on some pictures of a folder."""
    from tsss_edge.backends.reference import PyTorchBackend
    from tsss_edge.segment import run_network

    paths = sorted(p for p in pictures.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    with PyTorchBackend(Checkpoint.load(checkpoint), threads=1) as backend:
        return [run_network(backend, read_image(p))["logits"][0] for p in paths[:: max(1, len(paths) // PICTURES)]]


def boundary_share(logits: NDArray[np.float32]) -> float:
    """Share of the cells whose four corners do not agree on the class, 0-1."""
    best = np.pad(logits.argmax(0), 1, mode="edge")
    corners = np.stack([best[:-1, :-1], best[:-1, 1:], best[1:, :-1], best[1:, 1:]])
    return float((corners != corners[0]).any(0).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Kernels and rivals


def upsample_row(case: str, grids: list[NDArray[np.float32]], frame_hw: tuple[int, int]) -> KernelRow:
    classes, h, w = grids[0].shape
    plan, out = UpsampleArgmaxPlan((classes, h, w), frame_hw), np.empty(frame_hw, np.uint8)
    share, differing, margin = float(np.mean([boundary_share(g) for g in grids])), 0, 0.0
    for grid in grids:
        labels, full = plan(grid, out), torch_upsample(grid, frame_hw)
        differs = torch.from_numpy(labels) != full.argmax(0)
        differing += int(differs.sum())
        if differs.any():
            top = full[:, differs].topk(2, dim=0).values
            margin = max(margin, float((top[0] - top[1]).max()))
    note = f"{classes} classes, {h}x{w} grid, {share:.0%} boundary cells; {differing} pixels differ" + (
        f", by logits of at most {margin:.1g}" if differing else ""
    )
    ours, theirs = cycle(grids), cycle(grids)
    return time_row(
        "upsample_argmax",
        case,
        frame_hw,
        lambda: plan(next(ours), out),
        "PyTorch interpolate + argmax",
        lambda: torch_upsample(next(theirs), frame_hw).argmax(0).to(torch.uint8),
        note,
    )


def torch_upsample(logits: NDArray[np.float32], frame_hw: tuple[int, int]) -> torch.Tensor:
    """(K,h,w) -> (K,H,W), bilinear, half-pixel centres."""
    grid = torch.from_numpy(logits)[None]
    return torch.nn.functional.interpolate(grid, frame_hw, mode="bilinear", align_corners=False)[0]


def overlay_row(frame_hw: tuple[int, int], logits: NDArray[np.float32]) -> KernelRow:
    frame = np.random.default_rng(1).integers(0, 256, (*frame_hw, 3), dtype=np.uint8)
    labels = UpsampleArgmaxPlan((CLASSES, *GRID), frame_hw)(logits, np.empty(frame_hw, np.uint8))
    palette = tuple(voc_color(k) for k in range(CLASSES))
    plan, blended = OverlayPlan(frame_hw, palette), frame.copy()
    colours = np.zeros((256, 1, 3), np.uint8)
    colours[:CLASSES, 0] = np.array(palette, np.uint8)[:, ::-1]
    note = f"in place; {np.mean(labels != 0):.0%} of the pixels are coloured"
    return time_row(
        "overlay",
        "smooth field",
        frame_hw,
        lambda: plan(blended, labels),
        "OpenCV LUT + addWeighted + copyTo",
        lambda: opencv_overlay(frame, labels, colours),
        note,
    )


def opencv_overlay(
    frame: NDArray[np.uint8], labels: NDArray[np.uint8], colours: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The same picture (but for rounding) by whole-frame operations."""
    mixed = cv2.addWeighted(frame, 0.5, cv2.LUT(cv2.merge([labels] * 3), colours), 0.5, 0.0)
    out = frame.copy()
    cv2.copyTo(mixed, labels, out)  # where the label is not 0
    return out


def preprocess_row(frame_hw: tuple[int, int]) -> KernelRow:
    frame = np.random.default_rng(2).integers(0, 256, (*frame_hw, 3), dtype=np.uint8)
    spec = Preprocess(size_hw=(512, 512))
    plan = PreprocessPlan(frame_hw, spec, bgr=True)
    out, other = np.empty((512, 512, 3), np.uint8), np.empty((512, 512, 3), np.uint8)
    placement = spec.place(frame_hw)
    rows, columns = taps(placement, 1), taps(placement, 0)
    numba_resize(frame, *rows, *columns, other)
    difference = int(np.abs(plan(frame, out).astype(np.int16) - other).max())
    return time_row(
        "preprocess",
        "to 512x512, OpenCV",
        frame_hw,
        lambda: plan(frame, out),
        "numba, one pass, 11-bit weights",
        lambda: numba_resize(frame, *rows, *columns, other),
        f"largest difference {difference} of 255",
    )


def taps(placement: Placement, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Lower and upper source pixel of every target pixel along x (0) or y (1), and the upper one's weight in 1/2048."""
    size, target = placement.source[2 + axis], placement.target[2 + axis]
    position = ((np.arange(target) + 0.5) * size / target - 0.5).clip(0, size - 1)
    low = position.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), ((position - low) * 2048).round().astype(np.int32)


@numba.njit(nogil=True)
def numba_resize(image, top, bottom, wy, left, right, wx, out):  # type: ignore[no-untyped-def]
    """Bilinear resize and BGR to RGB in one pass, for comparison."""
    h, w, _ = out.shape
    for i in range(h):
        for j in range(w):
            for c in range(3):
                a, b = np.int32(image[top[i], left[j], c]), np.int32(image[top[i], right[j], c])
                d, e = np.int32(image[bottom[i], left[j], c]), np.int32(image[bottom[i], right[j], c])
                upper, lower = (a << 11) + (b - a) * wx[j], (d << 11) + (e - d) * wx[j]
                out[i, j, 2 - c] = (upper * (2048 - wy[i]) + lower * wy[i] + (1 << 21)) >> 22


def time_row(
    kernel: str,
    case: str,
    frame_hw: tuple[int, int],
    ours: Callable[[], object],
    rival: str,
    rival_call: Callable[[], object],
    note: str,
) -> KernelRow:
    ours()
    rival_call()
    mine, theirs = alternate([ours, rival_call], duration_s=SECONDS, rounds=ROUNDS)
    return KernelRow(
        kernel=kernel,
        case=case,
        frame_hw=frame_hw,
        ours_ms=float(np.median(mine)),
        ours_best_ms=min(mine),
        rival=rival,
        rival_ms=float(np.median(theirs)),
        ratio=float(np.median(theirs) / np.median(mine)),
        note=note,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Page


def page(bench: KernelBench) -> str:
    m = bench.machine
    worst = max(r.ours_ms for r in bench.rows if r.kernel == "upsample_argmax" and r.frame_hw == FRAMES[-1])
    lines = [
        "# CPU kernels",
        "",
        f"{m.cpu}, {m.cores} cores of which 1 is used, no GPU, {bench.date}. Command: `{bench.command}`",
        "",
        "Medians in milliseconds; each kernel and its rival in alternating rounds of one process. Fields are smooth random",
        "logits, other inputs of `upsample_argmax` the logits of a network that is named, on pictures of its own data set.",
        "A boundary cell is one whose four grid points do not agree on the class.",
        "",
        f"Target: `upsample_argmax`, {CLASSES} classes, to 1080p in at most {TARGET_MS:g} ms on one core: "
        f"**{met(worst <= TARGET_MS)}**, {worst:.2f} ms in the slowest case.",
        "",
        table(COLUMNS, [cells(row) for row in bench.rows]),
    ]
    lines += ["", *(f"Note: {note}." for note in bench.notes)]
    lines += [
        "",
        "How `upsample_argmax` gets there: the largest class of every grid point first; cells of one class are filled by",
        "copies of rows; in the others, classes that another class beats at all four corners are left out, and on each",
        "row the labels follow from the points where the remaining classes' straight lines cross. Pixels that differ from",
        "PyTorch's float32 sums are ties but for rounding: the margin between their two largest logits is in the table.",
        "",
        "The GPU kernels (`.cu`) compute the same formulas; their times need a GPU and are not in this page.",
    ]
    return "\n".join(lines).rstrip() + "\n"


COLUMNS = ("kernel", "input", "frame", "ms", "best ms", "rival", "rival ms", "rival / ours", "")


def cells(row: KernelRow) -> tuple[str, ...]:
    frame = f"{row.frame_hw[1]}x{row.frame_hw[0]}"
    times = (f"{row.ours_ms:.2f}", f"{row.ours_best_ms:.2f}")
    return row.kernel, row.case, frame, *times, row.rival, f"{row.rival_ms:.1f}", f"{row.ratio:.1f}", row.note


if __name__ == "__main__":
    main()
