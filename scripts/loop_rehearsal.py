"""The field's loop rehearsed on photographs: an engine that never saw a category meets it -> drift, frames, labels, a better engine.

python scripts/loop_rehearsal.py --data voc_photos --out runs/loop --new sheep --json loop.json

Every step leaves OUT/steps/NAME.json and is passed over when that is there, so a killed rehearsal goes on where it was. Labels of frames
come from the masks by script (image level only). `--until STEP` stops after a step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from loop_rehearsal_sets import make_sets

from tsss_edge import api
from tsss_edge.config import TrainConfig, load_target, read_toml
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.voc import VocDataset
from tsss_edge.deploy.choose import choose_engine
from tsss_edge.field.collector import CollectPlan
from tsss_edge.field.kept import Manifest
from tsss_edge.field.rules import status_path
from tsss_edge.files import read_json, write_json
from tsss_edge.review.session import LabelAnswer, ReviewSession
from tsss_edge.stream.asking import ask
from tsss_edge.train.adapt import adapt
from tsss_edge.train.supervised import train_supervised

WANTED = 100  # frames to label
HOUR = 3600


class Rehearsal:
    """The steps. Each returns what was measured."""

    def __init__(self, data: Path, out: Path, new: str, config: TrainConfig, epochs: int) -> None:
        self.data, self.out, self.new, self.config, self.epochs = data, out, new, config, epochs

    @property
    def field(self) -> dict[str, Any]:
        return json.loads((self.out / "field.json").read_text())  # type: ignore[no-any-return]

    def steps(self) -> dict[str, Callable[[], Any]]:
        return {
            "sets": self.sets,
            "train": self.train,
            "gate": lambda: self.engine("known", self.out / "old", self.out / "engines/old.xml"),
            "hour": self.hour,
            "stream": self.stream,
            "label": self.label,
            "adapt-collected": lambda: self.adapt("collected"),
            "adapt-random": lambda: self.adapt("random"),
            "gate-new": lambda: self.engine("fixed", self.out / "collected-run", self.out / "engines/new.xml"),
            "promote": self.promote,
        }

    def sets(self) -> Any:
        make_sets(self.data, self.out, new=self.new)
        field = self.field
        counts = {name: len(VocDataset.open(self.out / name).ids("val")) for name in ("known", "fixed")}
        return {
            "field": len(field["pictures"]),
            "change": field["change"],
            "new": len(field["shows_new"]),
            "val": counts,
        }

    def train(self) -> Any:
        run = train_supervised(self.config, self.out / "known", self.out / "old", resume=(self.out / "old").exists())
        return dict(run.meta.metrics)

    def engine(self, data: str, run: Path, path: Path) -> Any:
        """Export, build and gate; the record gets the profile."""
        graph = api.export(run, path.with_suffix(".onnx"), objectness=True, data=self.out / data)
        engine = choose_engine(
            graph, load_target("cpu"), path, eval_data=self.out / data, precision="fp32", reference=run, duration_s=1.0
        )
        made = engine.path.with_name(path.name)
        record, parity = engine.record, engine.record.parity
        assert parity is not None and record.profile is not None
        return {
            "engine": str(engine.path),
            "miou": parity.miou_engine,
            "drop": parity.miou_drop,
            "agreement": parity.pixel_agreement,
            "parent": record.meta.parent,
            "profile_pictures": record.profile.pictures,
            "record": made.name,
        }

    def _engine(self, step: str) -> Path:
        return Path(json.loads((self.out / f"steps/{step}.json").read_text())["engine"])

    def hour(self) -> Any:
        """3,600 photographs without the new category, drawn by lot from those that the engine was neither trained nor gated on."""
        field, rng, shown = self.field, np.random.default_rng(1), set(self.field["shows_new"])
        old = [n for n, name in enumerate(field["pictures"]) if name not in shown]
        folder = self.out / "hour"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for n, i in enumerate(rng.choice(old, HOUR)):
            os.link(self.out / f"field/{i:05d}.jpg", folder / f"{n:05d}.jpg")
        report = api.stream(self._engine("gate"), folder, str(self.out / "hour.jsonl"))
        assert report.drift is not None
        return {
            "frames": report.frames,
            "alarms": len(report.drift.alarms),
            "highest": highest(self.out / "hour.jsonl"),
        }

    def stream(self) -> Any:
        """The field, once, while frames are collected."""
        field = self.field
        after = len(field["pictures"]) - field["change"]
        plan = CollectPlan(self.out / "collected", 1 << 30, after / WANTED)
        report = api.stream(self._engine("gate"), self.out / "field", str(self.out / "field.jsonl"), collect=plan)
        assert report.drift is not None
        alarms = [msgspec.to_builtins(alarm) for alarm in report.drift.alarms]
        kept = read_json(self.out / "collected/manifest.json", Manifest).pictures
        return {
            "frames": report.frames,
            "change": field["change"],
            "alarms": alarms,
            "delay": alarms[0]["raised"] - field["change"] if alarms else None,
            "collected": len(kept),
            "collected_new": sum(self.shows(entry.frame) for entry in kept.values()),
            "latency_p50_ms": report.latency_ms.p50 if report.latency_ms else None,
        }

    def shows(self, frame: int) -> bool:
        """Whether a frame of the field shows the new category."""
        field = self.field
        return field["pictures"][frame] in set(field["shows_new"])

    def truth(self, frame: int) -> frozenset[int]:
        """Image-level label of a frame, from its mask."""
        ids = np.unique(read_mask(self.out / f"truth/{frame:05d}.png"))
        return frozenset(int(i) for i in ids if 0 < i < 255)

    def label(self) -> Any:
        """Label the first WANTED collected frames in the order of the review page, and as many drawn by lot from the stream."""
        field = self.field
        self._random_folder(np.random.default_rng(2).choice(len(field["pictures"]), WANTED, replace=False))
        found = {}
        for name in ("collected", "random"):
            session = ReviewSession(self.out / name)
            session.add_category(self.new)
            shown = [picture.id for picture in session.state().pictures][:WANTED]
            frames = [int(image_id.rpartition("-")[2]) for image_id in shown]
            for image_id, frame in zip(shown, frames, strict=True):
                session.answer(LabelAnswer(id=image_id, labels=tuple(sorted(self.truth(frame))), done=True))
            found[name] = {"labelled": len(shown), "show_new": sum(map(self.shows, frames))}
        return found

    def _random_folder(self, frames: Any) -> None:
        root = self.out / "random"
        shutil.rmtree(root, ignore_errors=True)
        (root / "JPEGImages").mkdir(parents=True)
        (root / "ImageSets/Segmentation").mkdir(parents=True)
        shutil.copy(self.out / "known/classes.txt", root)
        names = [f"frame-{frame:05d}" for frame in sorted(int(f) for f in frames)]
        for name in names:
            shutil.copy(self.out / f"field/{name[6:]}.jpg", root / f"JPEGImages/{name}.jpg")
        (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{name}\n" for name in names))

    def adapt(self, name: str) -> Any:
        run = self.out / f"{name}-run"
        report = adapt(
            self.out / "old",
            self.out / "known",
            run,
            new_class=self.new,
            collected=self.out / name,
            eval_data=self.out / "fixed",
            epochs=self.epochs,
            resume=run.exists(),
        )
        return report

    def promote(self) -> Any:
        """Stream the field on the old engine with the new one as its shadow; promote in mid-stream; count frames."""
        old, new = self._engine("gate"), self._engine("gate-new")
        lines = self.out / "promote.jsonl"
        for told in (lines, status_path(new)):
            told.unlink(missing_ok=True)  # of a run that was stopped

        def ask_later() -> None:
            while not lines.is_file() or len(lines.read_bytes().splitlines()) < 100:
                time.sleep(0.05)
            ask(new, "promote", 60.0)

        asking = threading.Thread(target=ask_later, daemon=True)  # an error of the stream must end the program
        asking.start()
        report = api.stream(old, self.out / "field", str(lines), shadow=new)
        asking.join()
        seen = [json.loads(line) for line in lines.read_text().splitlines()]
        frames, engines = [line["frame"] for line in seen], [line.get("engine") for line in seen]
        assert report.rollout is not None
        return {
            "frames": len(frames),
            "lost_or_repeated": int(frames != list(range(len(frames)))) and len(frames),
            "in_order": frames == list(range(len(self.field["pictures"]))),
            "first_new": engines.index(new.name) if new.name in engines else None,
            "changes_of_engine": sum(a != b for a, b in itertools.pairwise(engines)),
            "status": report.rollout,
        }


def highest(lines: Path) -> float:
    """The largest score of any figure; 1 is its limit."""
    rows = (json.loads(line) for line in lines.read_text().splitlines())
    return max((row["drift"]["score"] for row in rows if "drift" in row), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--new", default="sheep")
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "benchmarks/loop.toml")
    parser.add_argument("--epochs", type=int, default=1, help="of adapt")
    parser.add_argument("--until")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rehearsal = Rehearsal(args.data, args.out, args.new, read_toml(args.config, TrainConfig), args.epochs)
    results = {}
    for name, step in rehearsal.steps().items():
        note = args.out / f"steps/{name}.json"
        if not note.is_file():
            started = time.monotonic()
            result = msgspec.to_builtins(step())
            write_json(note, {**result, "seconds": round(time.monotonic() - started, 1)})
        results[name] = json.loads(note.read_text())
        print(
            name,
            json.dumps({k: v for k, v in results[name].items() if k not in ("alarms", "per_class")})[:400],
            flush=True,
        )
        if name == args.until:
            break
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    main()
