"""`bundle`: all that a host without a network needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tsss_edge.cli.options import Json, emit, flag, usage_errors


def bundle(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    python: Annotated[str, typer.Option(help="Python version of the host.")] = "3.10",
    machine: Annotated[Literal["x86_64", "aarch64"], typer.Option(help="Processor of the host.")] = "x86_64",
    extra: Annotated[
        list[str] | None, typer.Option(help="Extra of tsss-edge: onnx, cpu, rtx, train, web (default: none).")
    ] = None,
    require: Annotated[list[str] | None, typer.Option(help="Another package, as pip takes it.")] = None,
    wheel: Annotated[list[Path] | None, typer.Option(help="A ready wheel (PyCUDA built for that Python).")] = None,
    file: Annotated[list[Path] | None, typer.Option(help="A file or folder to put into the bundle.")] = None,
    part_mib: Annotated[int, typer.Option(min=1, help="Largest size of a part.")] = 48,
    level: Annotated[int, typer.Option(min=0, max=9, help="Compression by xz: 0 is quick, 9 is small.")] = 6,
    kernels: Annotated[bool, flag("--kernels", "Compile the CUDA kernels into our wheel (needs nvcc here).")] = False,
    system_packages: Annotated[
        bool, flag("--system-packages", "Let the venv use the host's own packages (Jetson).")
    ] = False,
    json: Json = None,
) -> None:
    """Everything a host without a network needs: wheels for its Python, files, install.sh; cut into parts.

    Example: tsss-edge bundle --out bundle --python 3.10 --extra rtx --extra train --extra onnx --kernels
    """
    from tsss_edge.deploy.bundle import write_bundle

    with usage_errors():
        made = write_bundle(
            out,
            python=python,
            machine=machine,
            extras=extra or [],
            requirements=require or [],
            wheels=wheel or [],
            files=file or [],
            part_mib=part_mib,
            preset=level,
            system_packages=system_packages,
            kernels=kernels,
        )
    emit(made, made.summary(out), json)
