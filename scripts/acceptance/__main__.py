"""`python -m acceptance --out DIR [--checkpoint CKPT --data DIR] [--tests DIR]`: see scripts/gpu_acceptance.sh."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from acceptance import run_acceptance
from tsss_edge.backends.cuda.gpus import choose_gpu
from tsss_edge.errors import TsssEdgeError


def main() -> None:
    """Exit 0 when everything passed, 1 when something failed or nothing could be tested, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="gpu_acceptance", description="Everything that needs a CUDA GPU, tested here."
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_acceptance"), help="folder for report and logs")
    parser.add_argument("--checkpoint", type=Path, help="a trained network (default: a small one is trained here)")
    parser.add_argument("--data", type=Path, help="its labelled set")
    parser.add_argument("--tests", type=Path, help="the project's tests folder")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stop then; the same command goes on later")
    parser.add_argument("--device", type=int, metavar="N", help="GPU to use, as nvidia-smi counts")
    parser.add_argument("--epochs", type=int, default=10, help="for the small network")
    try:
        given = vars(parser.parse_args())
        if (device := given.pop("device")) is not None:
            choose_gpu(device)
        report = run_acceptance(**given)
    except ValueError as error:
        parser.error(str(error))
    except TsssEdgeError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(report.summary() + "\n")
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
