"""Measurements of the live loop -> docs/results/stream.md and its JSON twin.

python scripts/stream_page.py --work runs/stream-page --out docs/results/stream.md

WORK holds what the commands on the page wrote: bench.json, trained.json, plain.json and so on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pages import met, table, today, write_page

NAMES = ("bench", "trained", "plain", "watched", "live", "restarts")
TARGETS = {"naive": 15.0, "efficiency": 0.85, "first_mask_s": 1.5}

COMMANDS = """\
tsss-edge bench runs/stream-engine/fused.int8.xml --stream street.mp4 --naive runs/stream-engine/fused.onnx --json bench.json
tsss-edge bench runs/camvid/fused.int8.xml --stream street.mp4 --naive runs/camvid/fused.onnx --json trained.json
tsss-edge stream runs/stream-engine/fused.int8.xml street.mp4 --json plain.json
tsss-edge stream runs/stream-engine/fused.int8.xml street.mp4 --reference runs/stream-engine/best.pt --parity-every 10 --json watched.json
PYTHONPATH=scripts chrt -f 1 python -m soak.live --seconds 600 > live.json
PYTHONPATH=scripts chrt -f 1 python -m soak.live --restarts 20 > restarts.json
python scripts/stream_page.py --work . --out docs/results/stream.md
"""

NOTES = """\
`runs/stream-engine` is edge-m with 21 classes and random weights: `export`, `calibrate` and `build-engine` of such a checkpoint.
`street.mp4` is a 1280x720 H.264 clip of 289 frames. `chrt` keeps other work on a shared machine out of the ages, because the
question is what the loop adds; on a machine of its own it is not needed. The RTSP server is GStreamer's:

```sh
apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-{base,good,ugly}
```
"""


def page(found: dict[str, Any], date: str) -> str:
    bench = found["bench"]
    machine = f"{bench['machine']['cores']}-core {bench['machine']['cpu']} ({', '.join(bench['machine']['units'])})"
    parts = [
        "# The live loop, measured",
        f"{machine}, Linux, no GPU, {date}. Numbers of the same name: [stream.json](stream.json).",
        loops(found),
        watch(found["plain"], found["watched"]),
        live(found["live"]),
        restarts(found["restarts"]),
        f"## Commands\n\n```sh\n{COMMANDS}```",
        NOTES,
    ]
    return "\n\n".join(parts)


COLUMNS = (
    "",
    "edge-m INT8, 512x512, 21 classes, random weights",
    "edge-m INT8, 480x352, 11 classes, trained on CamVid",
)


def loops(found: dict[str, Any]) -> str:
    bench, trained = found["bench"], found["trained"]
    rows = [
        ("naive loop, frames/s", "naive_fps", ".1f"),
        ("live loop, frames/s", "stream_fps", ".1f"),
        ("network alone, all requests in flight, frames/s", "network_fps", ".1f"),
        ("live / naive", "ratio_naive", ".1f"),
        ("live / network alone", "ratio_network", ".2f"),
        ("bound: cores / sum of core-ms, frames/s", "bound_fps", ".1f"),
        ("live / bound", "efficiency", ".2f"),
        ("process start to first mask, s", "first_mask_s", ".2f"),
    ]
    cells: list[tuple[str, ...]] = [
        (text, f"{bench[key]:{form}}", f"{trained[key]:{form}}") for text, key, form in rows
    ]
    stages = [
        (f"{name}, core-ms", *(f"{found['core_ms'][name]:.2f}" for found in (bench, trained)))
        for name in bench["core_ms"]
    ]
    return f"""## Beside the naive loop and beside the network alone

Medians of three alternating rounds in one process, a 1280x720 file, blended output. The naive loop reads, resizes, runs ONNX
Runtime FP32, resizes every class to the frame, takes the argmax and blends, each library with its own choice of threads.
Core-ms is the CPU time of a stage by itself; the bound is what a loop would give that lost nothing between the stages.

{table(COLUMNS, cells + stages)}

{verdicts(bench)}"""


def verdicts(bench: dict[str, Any]) -> str:
    most = bench["bound_fps"] / bench["naive_fps"]
    amx = "" if "amx_int8" in bench["machine"]["units"] else ", which has no AMX"
    naive, efficiency, first = (bench["ratio_naive"], bench["efficiency"], bench["first_mask_s"])
    return "\n".join(
        [
            f"- At least {TARGETS['naive']:.0f} times the naive loop: **{met(naive >= TARGETS['naive'])}**, {naive:.1f}. "
            f"A loop without any loss would give {most:.1f} on this processor{amx}.",
            f"- At least {TARGETS['efficiency']} of the bound: **{met(efficiency >= TARGETS['efficiency'])}**, {efficiency:.2f}.",
            f"- First mask within {TARGETS['first_mask_s']} s of the start: **{met(first <= TARGETS['first_mask_s'])}**, {first:.2f} s.",
        ]
    )


def watch(plain: dict[str, Any], watched: dict[str, Any]) -> str:
    parity = watched["parity"]
    return f"""## With the parity watch

The same file with every tenth frame due for the PyTorch reference: {watched["fps"]:.1f} frames/s against
{plain["fps"]:.1f} without ({watched["fps"] / plain["fps"]:.2f}). On full cores the reference took {parity["checked"]} of
{parity["due"]} due frames; nobody waited for it."""


def live(soak: dict[str, Any]) -> str:
    age, memory = soak["age_ms"], soak["memory_mib"]
    stops = ""
    if soak["stopped_s"]:
        stops = (
            f" The whole process was stopped {len(soak['stopped_s'])} times ({sum(soak['stopped_s']):.0f} s) by other measurements "
            f"on the machine; the {soak['masks_around_stops']} masks around that are left out of the ages only."
        )
    return f"""## A 30 frames/s camera on an engine of {soak["engine_ms"]:.0f} ms, {soak["seconds"] / 60:.0f} minutes, page open

| | |
|---|---|
| frames that arrived | {soak["arrived"]:,} |
| masks + dropped + after the last mask | {soak["masks"]:,} + {soak["dropped"]:,} + {soak["after_last_mask"]} |
| log lines, page and report count the same | {"yes" if soak["passed"]["drops"] else "NO"} |
| frame age p50 / p95 / p99 / max, ms | {age["p50"]:.0f} / {age["p95"]:.0f} / {age["p99"]:.0f} / {age["max"]:.0f} |
| masks older than 2 engine times ({soak["age_limit_ms"]:.0f} ms) | {soak["older_than_limit"]} |
| resident memory start / middle / end, MiB | {memory["start"]:.1f} / {memory["middle"]:.1f} / {memory["end"]:.1f} |
| slope of the second half, MiB a minute | {soak["memory_slope_mib_per_minute"]:.3f} |

Age below 2 engine times: **{met(soak["older_than_limit"] == 0)}**. Memory that does not grow:
**{met(soak["passed"]["memory"])}**. Every drop counted: **{met(soak["passed"]["drops"])}**. The engine is a fake of that
latency.{stops}"""


def restarts(soak: dict[str, Any]) -> str:
    memory = soak["memory_mib"]
    return f"""## An RTSP server killed and restarted {soak["restarts"]} times

Came back {soak["reconnects"]} times, {soak["back_s"]["p50"]:.1f} s (at most {soak["back_s"]["max"]:.1f} s) after the server was up
again: **{met(soak["passed"]["came_back"])}**. {soak["masks"]} masks, {soak["frames_no_camera_sent"]} of frames that no server sent
(each server has a colour of its own): **{met(soak["passed"]["frames"])}**. Memory {memory[0]:.0f} MiB at first,
{memory[len(memory) // 2]:.1f} in the middle, {memory[-1]:.1f} at the end; threads {soak["threads"][0]} before and
{soak["threads"][1]} after: **{met(soak["passed"]["memory"] and soak["passed"]["threads"])}**."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = {name: json.loads((args.work / f"{name}.json").read_text()) for name in NAMES}
    for report in found.values():  # a file's folder belongs to this machine
        if "source" in report:
            report["source"] = Path(report["source"]).name
    date = today()
    write_page(args.out, page(found, date), {"date": date, **found})


if __name__ == "__main__":
    main()
