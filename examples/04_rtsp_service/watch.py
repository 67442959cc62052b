"""An engine and a camera -> a line on standard output when a class appears, and when it is gone."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

GONE_AFTER = 25  # frames without it


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("source", help="rtsp://, a device number, a file")
    parser.add_argument("name", help="of the class")
    parser.add_argument("--share", type=float, default=0.01, help="of the frame, from which it counts as there")
    parser.add_argument("--web", help="[HOST:]PORT of the live page")
    args = parser.parse_args()
    command = [sys.executable, "-m", "tsss_edge", "stream", args.engine, args.source, "-"]
    command += ["--web", args.web] if args.web else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stream:
        assert stream.stdout is not None
        for event in events(map(json.loads, stream.stdout), args.name, args.share):
            print(json.dumps(event), flush=True)
    sys.exit(stream.returncode)


def events(lines: Iterator[dict[str, Any]], name: str, share: float) -> Iterator[dict[str, Any]]:
    """Lines of `tsss-edge stream ... -` -> one dict for each appearance and each end of one."""
    there, missing = False, 0
    for line in lines:
        if "areas" not in line:
            continue  # the report, at the end
        area = line["areas"].get(name, 0.0)
        missing = 0 if area >= share else missing + 1
        if (not there and not missing) or (there and missing == GONE_AFTER):
            there = not there
            what = "appears" if there else "gone"
            yield {"time": f"{datetime.now():%Y-%m-%dT%H:%M:%S}", "event": what, "class": name, "share": round(area, 4)}


if __name__ == "__main__":
    main()
