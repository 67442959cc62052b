"""Kill every step of the loop with SIGKILL and go on -> what was lost, as JSON.

python scripts/loop_kills.py old.fp32.xml new.fp32.xml field --kills 5 --json kills.json
python scripts/loop_kills.py old.fp32.xml new.fp32.xml field --adapt runs/old old-set labelled sheep --json kills.json

`field` is a folder of pictures. Collect: killed at random moments; all frames that were kept before are there after, whole, with their
entries, and the next stream adds to them. Review: killed right after the n-th answer; n labels are on disk. Roll out: killed while
the new engine is in service; the restarted stream begins with it. Killed before: it begins with the old one. Adapt: killed before
its first epoch, then after each one; at the end its weights are those of a run that nobody killed, and the old run is untouched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tsss_edge.artifacts import Checkpoint
from tsss_edge.data.pictures import read_image, read_mask
from tsss_edge.field.kept import Manifest
from tsss_edge.field.rules import load_status, status_path, wish
from tsss_edge.files import read_json, sha256_file

TOOL = [sys.executable, "-m", "tsss_edge"]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*TOOL, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON lines file; a killed process may leave half a line."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def until_frames(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(lines(path)) < count and process.poll() is None:
        time.sleep(0.02)


def kept(folder: Path) -> dict[str, int]:
    """Pictures of the folder -> their frame; every picture and every answer is read."""
    if not (folder / "manifest.json").is_file():
        return {}
    entries = read_json(folder / "manifest.json", Manifest).pictures
    for image_id in entries:
        read_image(folder / f"JPEGImages/{image_id}.jpg")
        read_mask(folder / f"Prelabels/{image_id}.png")
    return {image_id: entry.frame for image_id, entry in entries.items()}


def collect(engine: Path, field: Path, work: Path, kills: int) -> dict[str, Any]:
    folder, log, lost, damaged = work / "kept", work / "c.jsonl", 0, 0
    for n in range(kills):
        log.unlink(missing_ok=True)
        process = start("stream", str(engine), str(field), str(log), "--collect", str(folder), "--rate", "1200/h")
        until_frames(log, random.Random(n).randint(10, 120), process)
        settled = {image_id for image_id, frame in kept_now(folder).items() if frame < len(lines(log)) - 9}
        kill(process)
        try:
            after = kept(folder)
        except Exception as error:  # anything unreadable is what is looked for
            damaged += 1
            sys.stderr.write(f"{error}\n")
            continue
        lost += len(settled - set(after))
    return {"kills": kills, "kept": len(kept(folder)), "lost": lost, "damaged": damaged}


def kept_now(folder: Path) -> dict[str, int]:
    """As `kept`, while a stream writes: of the manifest alone."""
    path = folder / "manifest.json"
    return {i: e.frame for i, e in read_json(path, Manifest).pictures.items()} if path.is_file() else {}


def review(work: Path, kills: int) -> dict[str, Any]:
    folder, answered, wrong = work / "kept", 0, 0
    for n in range(kills):
        process = start("review", str(folder), "--web", "0")
        assert process.stderr is not None
        url = next(line for line in process.stderr if "http://" in line).split()[1]
        open_ones = [p for p in httpx.get(f"{url}api/state").json()["pictures"] if not p["done"]]
        for picture in open_ones[: n + 1]:
            answer = {"id": picture["id"], "labels": picture["labels"], "done": True}
            httpx.post(f"{url}api/answer", json=answer).raise_for_status()
            answered += 1
        kill(process)
        wrong += len((folder / "image_labels.csv").read_text().splitlines()) - 1 != answered
    return {"kills": kills, "answers": answered, "restarts_with_a_wrong_count": wrong}


def rollout(old: Path, new: Path, field: Path, work: Path) -> dict[str, Any]:
    found = {}
    status_path(new).unlink(missing_ok=True)
    for name, frames in (("before", 30), ("after", 0)):
        log = work / f"r-{name}.jsonl"
        log.unlink(missing_ok=True)
        process = start("stream", str(old), str(field), str(log), "--shadow", str(new))
        if frames:
            until_frames(log, frames, process)
        else:
            wish(new, "promote")
            while not any(line.get("engine") == new.name for line in lines(log)) and process.poll() is None:
                time.sleep(0.05)
        kill(process)
        indices = [line["frame"] for line in lines(log)]
        again = work / f"r-{name}-again.jsonl"
        process = start("stream", str(old), str(field), str(again), "--shadow", str(new), "--max-frames", "20")
        process.wait()
        status = load_status(new)
        found[name] = {
            "frames_in_order": indices == list(range(len(indices))),
            "phase": status.phase if status else None,
            "engine_after_restart": sorted({line.get("engine", "") for line in lines(again)}),
            "frames_after_restart": len(lines(again)),
        }
    status_path(new).unlink(missing_ok=True)
    return found


def adapt(run: Path, data: Path, collected: Path, new: str, work: Path, kills: int) -> dict[str, Any]:
    before = sha256_file(run / "best.pt")
    arguments = ["adapt", str(run), "--data", str(data), "--collected", str(collected), "--new-class", new]
    arguments += ["--epochs", str(kills)]
    whole, out = work / "adapt-whole", work / "adapt-killed"
    if start(*arguments, "--out", str(whole)).wait():
        raise SystemExit("adapt failed without a kill")
    epochs_at_kill = []
    for n in range(kills):
        process = start(*arguments, "--out", str(out), "--resume")
        while process.poll() is None and not (out / "last.pt" if n else out / "labels").exists():
            time.sleep(0.02)
        until_frames(out / "log.jsonl", n, process)
        kill(process)
        epochs_at_kill.append(len(lines(out / "log.jsonl")))
    start(*arguments, "--out", str(out), "--resume").wait()
    weights = [Checkpoint.load(folder).state() for folder in (whole, out)]
    return {
        "kills": kills,
        "epochs_at_kill": epochs_at_kill,
        "same_weights_as_never_killed": all(weights[0][name].equal(tensor) for name, tensor in weights[1].items()),
        "old_run_untouched": sha256_file(run / "best.pt") == before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("field", type=Path)
    parser.add_argument("--work", type=Path, default=Path("kills"))
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--adapt", nargs=4, metavar=("RUN", "DATA", "COLLECTED", "NEW"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    result = {
        "collect": collect(args.old, args.field, args.work, args.kills),
        "review": review(args.work, args.kills),
        "rollout": rollout(args.old, args.new, args.field, args.work),
    }
    if args.adapt:
        run, data, collected = (Path(text) for text in args.adapt[:3])
        result["adapt"] = adapt(run, data, collected, args.adapt[3], args.work, args.kills)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
