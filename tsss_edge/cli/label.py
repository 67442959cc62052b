"""`label`: pixel annotations for weak images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Data, Json, emit


def label(
    lnet: Annotated[
        Path, typer.Option(help="Run folder of `train lnet`, `train all` or, to label again, `train pnet`.")
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the masks (VOC layout).")],
    split: Annotated[str, typer.Option(help="A list in ImageSets/Segmentation.")] = "train",
    json: Json = None,
) -> None:
    """Pixel annotations for weak images: L-Net's foreground, class activation maps, self-diffusion; or P-Net's answer.

    Example: tsss-edge label --lnet runs/method --data runs/synth --out runs/labels
    """
    from tsss_edge.label.write import write_labels

    report = write_labels(lnet, data, out, split=split)
    emit(report, report.summary(), json)
