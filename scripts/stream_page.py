"""Measurements of the live loop -> docs/results/stream.md and its JSON twin.

python scripts/stream_page.py --work runs/stream-page --out docs/results/stream.md

WORK holds what the commands on the page wrote: bench.json, trained.json, convolutions.json and so on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from tsss_edge.files import write_bytes, write_json

NAMES = ("bench", "trained", "convolutions", "choices", "plain", "watched", "live", "restarts")
TARGETS = {"naive": 15.0, "efficiency": 0.85, "first_mask_s": 1.5}

COMMANDS = """\
python scripts/stream_engine.py --out runs/stream-engine
tsss-edge bench runs/stream-engine/fused.int8.xml --stream street.mp4 --naive runs/stream-engine/fused.onnx --json bench.json
tsss-edge bench runs/camvid/fused.int8.xml --stream street.mp4 --naive runs/camvid/fused.onnx --json trained.json
python scripts/convolution_speed.py runs/stream-engine/fused.int8.xml runs/stream-engine/fused.onnx > convolutions.json
python scripts/stream_choices.py runs/stream-engine/fused.int8.xml street.mp4 > choices.json
tsss-edge stream runs/stream-engine/fused.int8.xml street.mp4 --json plain.json
tsss-edge stream runs/stream-engine/fused.int8.xml street.mp4 --reference runs/stream-engine/best.pt --parity-every 10 --json watched.json
chrt -f 1 python scripts/soak.py --seconds 600 > live.json
chrt -f 1 python scripts/soak.py --restarts 20 > restarts.json
python scripts/stream_page.py --work . --out docs/results/stream.md
"""

NOTES = """\
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
    stages = [(f"{name}, core-ms", name) for name in bench["core_ms"]]
    table = [f"| {text} | {bench[key]:{form}} | {trained[key]:{form}} |" for text, key, form in rows]
    table += [f"| {text} | {bench['core_ms'][key]:.2f} | {trained['core_ms'][key]:.2f} |" for text, key in stages]
    head = "| | edge-m INT8, 512x512, 21 classes, random weights | edge-m INT8, 480x352, 11 classes, trained on CamVid |\n|---|---|---|\n"
    return f"""## Beside the naive loop and beside the network alone

Medians of three alternating rounds in one process, a 1280x720 file, blended output. The naive loop reads, resizes, runs ONNX
Runtime FP32, resizes every class to the frame, takes the argmax and blends, each library with its own choice of threads.
Core-ms is the CPU time of a stage by itself; the bound is what a loop would give that lost nothing between the stages.

{head}{chr(10).join(table)}

{verdicts(bench, found["convolutions"])}

{choices(found["choices"])}"""


def verdicts(bench: dict[str, Any], convolutions: dict[str, Any]) -> str:
    most = bench["bound_fps"] / bench["naive_fps"]
    largest = sorted(convolutions["layers"], key=lambda layer: -layer["gmac"])[:10]
    rate = statistics.median(layer["gmac_per_s"] for layer in largest)
    amx = "" if "amx_int8" in bench["machine"]["units"] else ", which has no AMX"
    return "\n".join(
        [
            f"- At least {TARGETS['naive']:.0f} times the naive loop: **{_met(bench['ratio_naive'] >= TARGETS['naive'])}**, "
            f"{bench['ratio_naive']:.1f}. A loop without any loss would give {most:.1f} on this processor{amx}:\n  the network is "
            f"{convolutions['gmac']:.2f} billion multiply-accumulates a frame, and its ten largest convolutions already run at\n"
            f"  {rate:.0f} billion a second on one core (median): {rate / 64:.1f} GHz times the 64 of one 512-bit `vpdpbusd` a cycle.",
            f"- At least {TARGETS['efficiency']} of the bound: **{_met(bench['efficiency'] >= TARGETS['efficiency'])}**, "
            f"{bench['efficiency']:.2f}.",
            f"- First mask within {TARGETS['first_mask_s']} s of the start: "
            f"**{_met(bench['first_mask_s'] <= TARGETS['first_mask_s'])}**, {bench['first_mask_s']:.2f} s.",
        ]
    )


def choices(found: dict[str, list[float]]) -> str:
    """The median of each round's ratio to the first variant."""
    first = next(iter(found.values()))
    rows = [
        f"| {name} | {statistics.median(fps):.1f} | {statistics.median(a / b for a, b in zip(fps, first, strict=True)):.3f} |"
        for name, fps in found.items()
    ]
    head = "| settings | frames/s | against the first |\n|---|---|---|\n"
    return f"What else could be set, in alternating rounds:\n\n{head}{chr(10).join(rows)}"


def _met(met: bool) -> str:
    return "met" if met else "missed"


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

Age below 2 engine times: **{_met(soak["older_than_limit"] == 0)}**. Memory that does not grow:
**{_met(soak["passed"]["memory"])}**. Every drop counted: **{_met(soak["passed"]["drops"])}**. The engine is a fake of that
latency.{stops}"""


def restarts(soak: dict[str, Any]) -> str:
    memory = soak["memory_mib"]
    return f"""## An RTSP server killed and restarted {soak["restarts"]} times

Came back {soak["reconnects"]} times, {soak["back_s"]["p50"]:.1f} s (at most {soak["back_s"]["max"]:.1f} s) after the server was up
again: **{_met(soak["passed"]["came_back"])}**. {soak["masks"]} masks, {soak["frames_no_camera_sent"]} of frames that no server sent
(each server has a colour of its own): **{_met(soak["passed"]["frames"])}**. Memory {memory[0]:.0f} MiB at first,
{memory[len(memory) // 2]:.1f} in the middle, {memory[-1]:.1f} at the end; threads {soak["threads"][0]} before and
{soak["threads"][1]} after: **{_met(soak["passed"]["memory"] and soak["passed"]["threads"])}**."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = {name: json.loads((args.work / f"{name}.json").read_text()) for name in NAMES}
    for report in found.values():  # a file's folder belongs to this machine
        if "source" in report:
            report["source"] = Path(report["source"]).name
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    write_bytes(args.out, page(found, date).encode())
    write_json(args.out.with_suffix(".json"), {"date": date, **found})


if __name__ == "__main__":
    main()
