"""The rows of the table: the method, and the method with one part on or off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tsss_edge.train.pnet import PLAIN, Switches


@dataclass(frozen=True)
class RowPlan:
    """One row of the table: which folder of a seed holds its network, and how that is made or looked at.

    switches: P-Net's; of a supervised network CutMix alone counts.
    """

    protocol: str  # "100", "50" or "0": percent of the categories that are strong
    name: str
    folder: str
    switches: Switches = field(default_factory=Switches)
    relabel: bool = True
    flip: bool = False

    @property
    def key(self) -> str:
        """As `--rows` names it."""
        return f"{self.protocol}:{self.name}"


ROWS = (
    RowPlan("100", "supervised", "supervised", PLAIN),
    RowPlan("100", "cutmix", "supervised-cutmix"),
    RowPlan("100", "flips", "supervised", PLAIN, flip=True),
    RowPlan("50", "full", "50/pnet"),
    RowPlan("50", "labels-only", "50/labels-only", PLAIN, relabel=False),
    RowPlan("50", "without-relabel", "50/without-relabel", relabel=False),
    RowPlan("50", "without-d", "50/without-d", Switches(adversarial=False)),
    RowPlan("50", "without-cutmix", "50/without-cutmix", Switches(cutmix=False)),
    RowPlan("50", "teacher", "50/teacher", Switches(mean_teacher=True)),
    RowPlan("50", "flips", "50/pnet", flip=True),
    RowPlan("0", "full", "0/pnet"),
    RowPlan("0", "labels-only", "0/labels-only", PLAIN, relabel=False),
    RowPlan("0", "without-cutmix", "0/without-cutmix", Switches(cutmix=False)),
    RowPlan("0", "teacher", "0/teacher", Switches(mean_teacher=True)),
    RowPlan("0", "flips", "0/pnet", flip=True),
)


def choose_rows(names: Sequence[str] | None, *, with_source: bool) -> tuple[RowPlan, ...]:
    """The rows to make, in the table's order. Raises: ValueError: an unknown name, or 0% without a source set."""
    known = {plan.key: plan for plan in ROWS}
    wanted = set(known if names is None else names) | {"100:supervised"}
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"unknown row {unknown[0]!r}; choose from {', '.join(known)}")
    if names is not None and not with_source and any(name.startswith("0:") for name in names):
        raise ValueError("rows of the 0% protocol need a source set; give --source")
    return tuple(plan for key, plan in known.items() if key in wanted and (with_source or plan.protocol != "0"))
