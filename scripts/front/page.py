"""A study -> its page and its picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from pages import table

from front.networks import OURS, PAPERS, PRETRAINED
from front.study import Row, Study
from front.variants import VARIANTS

SPREAD = 1.0  # points of mIoU: what is nearer is a tie, also where no second seed was trained


def tie(row: Row, other: Row) -> float:
    """Points of mIoU within which two networks tie: half of what the seeds of each differ by, added, and never less than `SPREAD`."""
    return max(SPREAD, (row.range("unseen_int8") + other.range("unseen_int8")) / 2)


def beaten_by(row: Row, rows: Sequence[Row]) -> list[str]:
    """Networks with more accuracy on the unseen sequence, beyond the spread of seeds, at less or equal INT8 core-ms."""
    cheaper = [r for r in rows if r.int8_ms <= row.int8_ms]
    return [r.name for r in cheaper if r.mean("unseen_int8") > row.mean("unseen_int8") + tie(row, r)]


def cell(row: Row, score: str) -> str:
    """The mean over the seeds, and half of what they differ by."""
    half = f" ± {row.range(score) / 2:.2f}" if len(row.seeds) > 1 else ""
    return f"{row.mean(score):.2f}{half}"


def page(study: Study, picture: str) -> str:
    """As Markdown."""
    machine = f"{study.machine.cpu}, {study.machine.cores} cores, no GPU, {study.date}"
    columns = ("network", "from", "parameters", "unseen, float", "unseen, INT8", "val, float", "val, INT8")
    rows = sorted(study.rows, key=lambda r: r.int8_ms)
    cells = [
        (
            r.name + (" (ImageNet)" if r.name in PRETRAINED else ""),
            PAPERS[r.name],
            f"{r.parameters / 1e6:.2f} M",
            *(cell(r, score) for score in ("unseen", "unseen_int8", "val", "val_int8")),
            f"{r.float_ms:.1f}",
            f"{r.int8_ms:.1f}",
            r.rtx,
            ", ".join(beaten_by(r, rows)) or "nobody",
        )
        for r in rows
    ]
    unseen, val = study.trivial
    cells.append(("most frequent class", "", "", *(f"{v:.2f}" for v in (unseen, unseen, val, val)), "", "", "", ""))
    more = ("float32 core-ms", "INT8 core-ms", "TensorRT-RTX", "above it at no more core-ms")
    return HEAD.format(
        picture=picture,
        machine=machine,
        left_out=study.left_out,
        epochs=" to ".join(str(e) for e in sorted({r.epochs for r in rows})),
        command=study.command,
        spread=SPREAD,
        seeds=" and ".join(str(n) for n in sorted({len(r.seeds) for r in rows})),
        table=table((*columns, *more), cells),
        ours=", ".join(r.name for r in rows if r.name in OURS and not beaten_by(r, rows)) or "none of ours",
    )


def draw(study: Study) -> Figure:
    """mIoU on the unseen sequence over INT8 core-ms: ours filled, the others hollow, a bar where two seeds differ."""
    figure = Figure(figsize=(9.6, 5.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for row in study.rows:
        own, accuracy = row.name in (*OURS, *VARIANTS), row.mean("unseen_int8")
        color = "tab:blue" if own else "tab:gray"
        half = row.range("unseen_int8") / 2
        if half:
            axes.errorbar([row.int8_ms], [accuracy], yerr=half, color=color, capsize=3)
        axes.plot([row.int8_ms], [accuracy], "o", color=color, fillstyle="full" if own else "none")
        axes.annotate(row.name, (row.int8_ms, accuracy), textcoords="offset points", xytext=(6, 4 if own else -12))
    axes.set(
        xlabel="INT8, core-ms a picture of 480x352", ylabel=f"mIoU on the unseen sequence {study.left_out}, percent"
    )
    axes.margins(x=0.12)
    axes.grid(alpha=0.3)
    return figure


HEAD = """# The front on CamVid, {epochs} epochs

mIoU over core-ms: our networks and those of other papers, trained, quantised and timed the same way.

![mIoU over core-ms]({picture})

{table}

- **Unseen**: the sequence {left_out}, which no network was trained on; `val` shares its sequence with the training pictures, so
  it flatters. No checkpoint and no setting was chosen by either: the last weights count.
- **Trained**: {epochs} epochs of the other sequences, {seeds} seed(s) (their mean, ± half of what they differ by), batches of 8 views of
  256x192, scale 0.6 to 1.8, AdamW, bf16 with depthwise convolutions in float32, one cross-entropy with soft Jaccard on the output; no
  auxiliary heads for anybody. lite0 starts from ImageNet and keeps its stages up to stride 16.
- **core-ms**: OpenVINO, one thread, network alone, medians of engines in alternation, at 480x352.
- **Above it**: better in INT8 on the unseen sequence at no more INT8 core-ms, by more than {spread:.0f} point and more than their
  seeds spread (the two ± added). Of ours nobody is above: {ours}.

Measured on: {machine}.

    PYTHONPATH=scripts {command}
"""
