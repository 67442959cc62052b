"""The rows of scripts/quantization_table.py -> a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence

from pages import table as markdown_table

from tsss_edge.artifacts import Struct
from tsss_edge.bench import Machine


class EngineRow(Struct, frozen=True):
    """One engine. mIoU in percent, agreement 0-1, latency of the network alone in milliseconds."""

    network: str
    engine: str
    runs_on: str
    miou: float
    drop: float
    drop_interval: tuple[float, float]
    pixel_agreement: float
    boundary_agreement: float
    passed: bool
    images: int
    p50_ms: float
    best_ms: float
    speedup: float  # over PyTorch FP32, by the least disturbed call of each
    note: str = ""


class Section(Struct, frozen=True):
    """Something measured elsewhere that belongs on the page: a text and a table."""

    title: str
    text: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class QuantizationTable(Struct, frozen=True):
    """Everything that was measured, and where."""

    rows: tuple[EngineRow, ...]
    max_drop: float
    split: str
    calibration_images: int
    machine: Machine
    notes: tuple[str, ...]
    measured: str  # date
    tool: str
    more: tuple[Section, ...] = ()


def page(table: QuantizationTable) -> str:
    """The Markdown page: one table a network."""
    m = table.machine
    lines = [
        "# What quantization costs and gains",
        "",
        f"Accuracy on split `{table.split}`, against PyTorch FP32 of the same checkpoint, run in the same pass; gate at "
        f"{table.max_drop:.2f} mIoU points either way, up to {table.calibration_images} calibration pictures of the training split. "
        "Agreement, boundary agreement and the bootstrap interval are defined in [parity.md](../parity.md). Latency is "
        "the network alone, batch 1, all engines in alternating rounds of one process on a machine that others used too: the best "
        "call is nearer the truth than the median, and speed-ups are of best calls. A row's pictures of calibration are the "
        "same for all methods; those that `auto` and search judged by are not among them. The QAT rows are a fine-tuned "
        "network, before and after INT8, against the one it started from.",
        "",
        f"Measured {table.measured} on {m.cpu} ({' '.join(m.units)}), {m.cores} cores, {m.threads or 'all'} threads, by "
        f"`scripts/quantization_table.py` of {table.tool}; the numbers are in the JSON twin of this page.",
        *(f"\nNote: {note}." for note in table.notes),
    ]
    for network in dict.fromkeys(r.network for r in table.rows):
        rows = [r for r in table.rows if r.network == network]
        lines += ["", f"## {network}", "", f"{rows[0].images} pictures.", "", *markdown(rows)]
    for section in table.more:
        lines += ["", f"## {section.title}", "", section.text, *section_table(section)]
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[EngineRow]) -> list[str]:
    head = ["engine", "mIoU", "drop", "95% interval", "agreement", "at boundaries", "gate", "median ms", "best ms"]
    head += ["x PyTorch", ""]
    return [markdown_table(head, [row_cells(row) for row in rows], right=True)]


def row_cells(r: EngineRow) -> list[str]:
    low, high = r.drop_interval
    return [
        r.engine, f"{r.miou:.2f}", f"{r.drop:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{r.pixel_agreement:.4f}",
        f"{r.boundary_agreement:.4f}", "passed" if r.passed else "FAILED", f"{r.p50_ms:.2f}", f"{r.best_ms:.2f}",
        f"{r.speedup:.1f}", r.note,
    ]  # fmt: skip


def section_table(section: Section) -> list[str]:
    return ["", markdown_table(section.columns, section.rows)] if section.columns else []
