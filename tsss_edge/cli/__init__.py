"""The command line: parse, one library call, print. The contract is in docs/cli.md.

Nothing heavy is imported here: `tsss-edge --help` needs no torch, TensorRT, OpenVINO or ONNX Runtime.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tsss_edge import __version__
from tsss_edge.cli.adapt import adapt
from tsss_edge.cli.bench import bench
from tsss_edge.cli.build_engine import build_engine
from tsss_edge.cli.bundle import bundle
from tsss_edge.cli.calibrate import calibrate
from tsss_edge.cli.data import app as data
from tsss_edge.cli.deepstream import deepstream
from tsss_edge.cli.demo import demo
from tsss_edge.cli.doctor import doctor
from tsss_edge.cli.eval import evaluate
from tsss_edge.cli.export import export
from tsss_edge.cli.import_ import import_
from tsss_edge.cli.inspect import inspect
from tsss_edge.cli.label import label
from tsss_edge.cli.options import on_gpu
from tsss_edge.cli.parity import parity
from tsss_edge.cli.promote import promote
from tsss_edge.cli.reproduce import reproduce
from tsss_edge.cli.review import review
from tsss_edge.cli.segment import segment
from tsss_edge.cli.stream import stream
from tsss_edge.cli.train import app as train
from tsss_edge.cli.triton import triton
from tsss_edge.cli.zoo import zoo
from tsss_edge.errors import EXIT_ERROR, EXIT_INTERNAL, EXIT_OK, TsssEdgeError, UnavailableError
from tsss_edge.files import reason

# Modules that a stage imports by itself, by the extra that brings them; others are asked for by `import_extra`.
_EXTRAS = {"torch": "train", "tensorboard": "train", "scipy": "train", "onnx": "onnx", "onnxruntime": "onnx"}

app = typer.Typer(
    name="tsss-edge",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="From labels to a live, accuracy-proven segmentation engine at the edge.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tsss-edge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
    ),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Say more of what is done, on standard error."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Say errors only."),
    debug: bool = typer.Option(False, "--debug", envvar="TSSS_EDGE_DEBUG", help="Show tracebacks of errors."),
) -> None:
    """From labels to a live, accuracy-proven segmentation engine at the edge."""
    if debug:
        os.environ["TSSS_EDGE_DEBUG"] = "1"
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level, stream=sys.stderr)


def version() -> None:
    """Print the version.

    Example: tsss-edge version
    """
    _print_version(True)


def help_of(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="A command, as `data import`.")
    ] = None,
) -> None:
    """Show the help of a command.

    Example: tsss-edge help data import
    """
    here: Any = context.parent
    for word in words or ():
        group = here.command
        found = group.get_command(here, word) if hasattr(group, "get_command") else None
        if found is None:
            raise typer.BadParameter(f"no command {word!r}; `tsss-edge help` lists them")
        here = type(here)(found, info_name=word, parent=here)
    typer.echo(here.command.get_help(here))


COMMANDS: tuple[Callable[..., None], ...] = (
    *(demo, doctor, inspect, label, adapt, reproduce, export, calibrate, build_engine),
    *(parity, bench, stream, review, promote, segment, triton, deepstream, bundle, zoo),
)
WITHOUT_GPU = (inspect, review, promote, export, calibrate, deepstream, bundle, zoo, import_, version, help_of)
for command in COMMANDS:
    app.command()(command if command in WITHOUT_GPU else on_gpu(command))
app.command("eval")(on_gpu(evaluate))
app.command("import")(import_)
app.command()(version)
app.command("help")(help_of)
app.add_typer(data, name="data")
app.add_typer(train, name="train")


def main() -> None:
    """Run the command line; every error becomes one line and its exit code, one of ours (70) with the wish to hear of it."""
    try:
        app()
    except TsssEdgeError as error:
        _fail(error, error.exit_code)
    except ModuleNotFoundError as error:
        if (extra := _EXTRAS.get((error.name or "").partition(".")[0])) is None:
            return _internal(error)
        _fail(f"{error}; install it with `pip install 'tsss-edge[{extra}]'`", UnavailableError.exit_code)
    except OSError as error:  # disk full, permission denied, a folder where a file should be
        _fail(error, EXIT_ERROR)
    except MemoryError as error:
        _fail(f"out of memory ({reason(error)}); take smaller pictures, batches or networks", EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # the last net: what comes here is a fault of ours
        _internal(error)
    sys.exit(EXIT_OK)


def _internal(error: Exception) -> None:
    where = traceback.extract_tb(error.__traceback__)[-1]
    _fail(
        f"internal error, please report: {type(error).__name__}: {reason(error)} (in {where.name}, {Path(where.filename).name} "
        f"line {where.lineno}; `tsss-edge --debug ...` shows the whole way there)",
        EXIT_INTERNAL,
    )


def _fail(error: Exception | str, code: int) -> None:
    if os.environ.get("TSSS_EDGE_DEBUG"):
        traceback.print_exc()
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)
    sys.exit(code)
