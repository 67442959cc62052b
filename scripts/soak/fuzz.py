"""Damaged inputs to every reader -> each is read as what it was, or refused by one line of ours; nothing else.

python -m soak.fuzz --inputs 10000 --seed 1

A failure is: an exception that is not one of ours, more than `SLOW_S` seconds, more than `MEMORY` of memory, or a file with a digest
whose bytes changed and that loads as something else than before. Failing inputs are written to --corpus, and the tests try every
input there (tests/corpus).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from soak.world import import_heavy, make_world, told
from tsss_edge.errors import TsssEdgeError

SLOW_S = 20.0
MEMORY = 12 << 30  # bytes of address space; what a description promises must not be allocated
CORPUS = Path(__file__).parents[2] / "tests/corpus"
TOKENS = (b"", b"\0", b"\xff\xfe", b"-1", b"1e999", b"9" * 30, b"../../evil", b"/etc/passwd", b"null", b"[" * 2000, b'{"a":' * 2000,
          b"%s%n", b"\r\n", b'"' * 3, b"\xed\xa0\x80", b"NaN", b"true", b"a" * 200_000, b"UTF-77", b",,,,")  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """One kind of file: a whole example, what reads it, and whether a digest guards it."""

    name: str
    file: str
    read: Callable[[Path], Any]
    sealed: bool = False


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to four small changes: bits, bytes, cuts, copies, tokens, numbers."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(out) + 1)
        end = min(len(out), at + draw.choice((1, 2, 4, 16, 200)))
        kind = draw.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[at:end] = draw.randbytes(end - at)
        elif kind == 2:
            del out[at:end]
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            out[at:at] = out[draw.randrange(len(out) + 1) :][: draw.choice((4, 64, 1000))]
        else:
            out[at : end if kind == 5 else at] = draw.choice(TOKENS)
    return bytes(out)


def mutated_json(data: bytes, draw: random.Random) -> bytes:
    """One value of a JSON text exchanged for another kind of value, one field dropped, or bytes as in `mutated`."""
    if draw.random() < 0.4:
        return mutated(data, draw)
    content = msgspec.json.decode(data)
    place = content
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        inner = place[key]
        if not (isinstance(inner, dict | list) and inner) or draw.random() < 0.3:
            values: tuple[Any, ...] = (
                None,
                -1,
                10**9,
                1e300,
                "",
                "../x",
                "a" * 1000,
                [],
                {},
                [[]],
                True,
                [10**6] * 4,
                {"a": None},
            )
            if draw.random() < 0.2:
                del place[key]
            else:
                place[key] = draw.choice(values)
            break
        place = inner
    return msgspec.json.encode(content)


# -- What is read


def readers(world: Path) -> list[Reader]:
    """Every reader of ours with an example that it takes."""
    _write_examples(world)
    return [*_artifacts(world), *_data(), *_settings()]


def _artifacts(world: Path) -> list[Reader]:
    from tsss_edge.artifacts import Checkpoint, Engine, OnnxModel
    from tsss_edge.calib.ranges import CalibTable
    from tsss_edge.export.foreign.foreign_graph import read_foreign
    from tsss_edge.inspection import inspect_path
    from tsss_edge.train.runfolder import read_log

    def checkpoint(path: Path) -> Any:
        loaded = Checkpoint.load(path)
        return loaded.meta, {k: v.numpy().tobytes() for k, v in loaded.state().items()}

    def graph(path: Path) -> Any:
        return OnnxModel.load(path).graph.SerializeToString(deterministic=True)

    def record(path: Path) -> Any:
        return Engine.load(path.with_suffix(".xml")).record

    def resumed(path: Path) -> Any:
        loaded = Checkpoint.load(path)
        return sorted(loaded.resume())

    return [
        Reader("checkpoint", "run/best.pt", checkpoint, sealed=True),
        Reader("last.pt", "run/last.pt", resumed, sealed=True),
        Reader("onnx", "net.onnx", graph, sealed=True),
        Reader("int8 onnx", "net.int8.onnx", graph, sealed=True),
        Reader("engine xml", "net.int8.xml", lambda p: Engine.load(p).record, sealed=True),
        Reader("engine bin", "net.int8.bin", record, sealed=True),
        Reader("record", "net.int8.json", record, sealed=True),
        Reader("ranges", "net.int8.ranges.json", CalibTable.load, sealed=True),
        Reader("inspected record", "net.int8.json", inspect_path, sealed=True),
        Reader("foreign onnx", "net.onnx", read_foreign),
        Reader("log", "run/log.jsonl", read_log),
    ]


def _data() -> list[Reader]:
    from tsss_edge.data.check import check_dataset
    from tsss_edge.data.importers import import_set
    from tsss_edge.data.pictures import read_image, read_mask
    from tsss_edge.data.voc import VocDataset

    def dataset(depth: int) -> Callable[[Path], Any]:
        def read(path: Path) -> Any:
            root = path.parents[depth]
            set_ = VocDataset.open(root)
            for split in set_.splits:
                for image_id in set_.ids(split):
                    set_.image_labels(image_id)
                    set_.mask_path(image_id)
            return check_dataset(root)

        return read

    def imported(kind: Any, *, folder: bool = False, tags: bool = False) -> Callable[[Path], Any]:
        def read(path: Path) -> Any:
            with tempfile.TemporaryDirectory() as out:
                import_set(kind, path.parent if folder else path, Path(out) / "o", image_labels=tags)
                return require_inside(Path(out) / "o", Path(out))

        return read

    pictures = [
        Reader(f"picture {kind}", f"p/a.{kind}", read_image) for kind in ("jpg", "png", "bmp", "gif", "tif", "webp")
    ]
    return [
        *pictures,
        Reader("mask", "p/m.png", read_mask),
        Reader("split list", "voc/ImageSets/Segmentation/val.txt", dataset(2)),
        Reader("classes", "voc/classes.txt", dataset(0)),
        Reader("image labels", "voc/image_labels.csv", dataset(0)),
        Reader("annotation", "voc/Annotations/a.xml", dataset(1)),
        Reader("coco", "coco/instances_val.json", imported("coco")),
        Reader("labelme", "labelme/a.json", imported("labelme", folder=True)),
        Reader("cvat", "cvat/annotations.xml", imported("cvat")),
        Reader("yolo yaml", "yolo/data.yaml", imported("yolo")),
        Reader("tags", "tags/t.csv", imported("folders", tags=True)),
    ]  # fmt: skip


def require_inside(out: Path, root: Path) -> int:
    """Files written, none of them outside `out`. Raises: AssertionError: one is."""
    written = [p for p in root.rglob("*") if p.is_file()]
    assert all(p.is_relative_to(out) for p in written), "written outside its folder"
    return len(written)


def _settings() -> list[Reader]:
    from tsss_edge.calib.sets import find_set
    from tsss_edge.config import TrainConfig, load_target, read_toml
    from tsss_edge.data.voc import read_ids
    from tsss_edge.errors import masked
    from tsss_edge.stream.uris import parse_sink, parse_source

    def address(path: Path) -> Any:
        text = path.read_bytes().decode(errors="replace")
        for parse in (parse_source, parse_sink):
            with contextlib.suppress(TsssEdgeError):
                masked(parse(text).shown)
        return None

    return [
        Reader("train config", "run/config.toml", lambda p: read_toml(p, TrainConfig)),
        Reader("target", "t/cpu.toml", lambda p: load_target(str(p))),
        Reader("calibration set", "t/set.toml", lambda p: find_set(str(p))),
        Reader("calibration list", "t/list.txt", read_ids),
        Reader("address", "t/address.txt", address),
    ]


def _write_examples(world: Path) -> None:
    """Small whole examples of the formats that our commands do not write."""
    import shutil

    from PIL import Image

    from tsss_edge.config import shared_folder
    from tsss_edge.data.voc import write_mask

    for folder in ("p", "t", "coco", "labelme", "cvat", "yolo/images", "yolo/labels", "tags", "voc/Annotations"):
        (world / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    for kind in ("jpg", "png", "bmp", "gif", "tif", "webp"):
        image.save(world / f"p/a.{kind}")
    for folder in ("coco", "labelme", "cvat", "yolo/images", "tags"):
        image.save(world / folder / "a.jpg")
    mask = rng.integers(0, 3, (24, 32), dtype=np.uint8)
    write_mask(world / "p/m.png", mask)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (world / "voc" / folder).mkdir(parents=True, exist_ok=True)
    image.save(world / "voc/JPEGImages/a.jpg")
    write_mask(world / "voc/SegmentationClass/a.png", mask)
    texts = {
        "voc/classes.txt": "background\ncat\ndog\n",
        "voc/image_labels.csv": "id,classes\nb,1 2\n",
        "voc/ImageSets/Segmentation/val.txt": "a\n",
        "voc/Annotations/a.xml": '<?xml version="1.0" encoding="utf-8"?><annotation><object><name>cat</name></object></annotation>',
        "coco/instances_val.json": json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg", "height": 24, "width": 32}],
                "categories": [{"id": 3, "name": "cat"}],
                "annotations": [{"image_id": 1, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9]], "iscrowd": 0}],
            }
        ),
        "labelme/a.json": json.dumps(
            {
                "shapes": [{"label": "cat", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}],
                "imagePath": "a.jpg", "imageHeight": 24, "imageWidth": 32, "flags": {},
            }
        ),
        "cvat/annotations.xml": "<annotations><meta><task><labels><label><name>cat</name></label></labels></task></meta>"
        '<image id="0" name="a.jpg" width="32" height="24" subset="Train"><box label="cat" xtl="1" ytl="2" xbr="9" ybr="9"/>'
        '<mask label="cat" rle="3, 2, 1" left="2" top="2" width="3" height="2" z_order="1"/></image></annotations>',
        "yolo/data.yaml": "path: .\ntrain: images\nnames: {0: cat}\n",
        "yolo/labels/a.txt": "0 0.1 0.1 0.5 0.1 0.5 0.5\n",
        "tags/t.csv": "file,classes\na.jpg,cat\n",
        "t/set.toml": 'name = "s"\nsplit = "train"\nsize = 4\nlist = "list.txt"\n',
        "t/list.txt": "s0\ns1\n",
        "t/address.txt": "rtsp://user:secret@cam:554/x?a=b",
    }  # fmt: skip
    for name, text in texts.items():
        (world / name).write_text(text)
    shutil.copy(shared_folder("export") / "cpu.toml", world / "t/cpu.toml")


# -- The run


def attempt(reader: Reader, path: Path, whole: Any) -> str:
    """What went wrong with the file that lies at `path`; empty when nothing did."""
    began = time.monotonic()
    try:
        found = reader.read(path)
        if reader.sealed and found != whole:
            return "changed bytes were accepted"
    except TsssEdgeError as error:
        if "\n" in str(error):
            return "an error of several lines"
    except Exception as error:  # what this looks for
        return f"{type(error).__name__}: {str(error)[:200]}"
    return f"{time.monotonic() - began:.0f} s" if time.monotonic() - began > SLOW_S else ""


def tried(reader: Reader, world: Path, data: bytes, loaded: Any) -> str:
    """`attempt` with `data` in the place of the reader's example, which lies there again afterwards."""
    path = world / reader.file
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        return attempt(reader, path, loaded)
    finally:
        path.write_bytes(whole)


def soak_inputs(
    inputs: int, seed: int, seconds: float | None = None, corpus: Path | None = None, *, keeps: bool = True
) -> dict[str, Any]:
    """All of the corpus, then so many damaged inputs, or as many as `seconds` allow."""
    import_heavy()
    began, counts, failures = time.monotonic(), Counter[str](), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        world = make_world(Path(folder) / "world")
        every = readers(world)
        logging.getLogger("tsss_edge").setLevel(logging.CRITICAL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
        wholes = [reader.read(world / reader.file) for reader in every]
        known = {reader.name.replace(" ", "-"): index for index, reader in enumerate(every)}
        done = from_corpus = 0
        for kept in sorted(p for p in corpus.rglob("*") if p.is_file()) if corpus else ():
            index = known[kept.parent.name]
            if problem := tried(every[index], world, kept.read_bytes(), wholes[index]):
                failures[f"{kept.parent.name}/{kept.name}"] = problem
            from_corpus += 1
        while done < inputs and (seconds is None or time.monotonic() - began < seconds):
            draw = random.Random(f"{seed}/{done}")
            index = draw.randrange(len(every))
            reader, whole = every[index], (world / every[index].file).read_bytes()
            data = (mutated_json if reader.file.endswith(".json") else mutated)(whole, draw)
            if data != whole and (problem := tried(reader, world, data, wholes[index])):
                failures[f"{reader.name}, seed {seed}/{done}"] = problem
                keep(corpus if keeps else None, reader, data)
            counts[reader.name] += 1
            done += 1
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {
        "seed": seed,
        "inputs": done,
        "from_corpus": from_corpus,
        "readers": len(every),
        "by_reader": dict(sorted(counts.items())),
        "seconds": round(time.monotonic() - began, 1),
        "failures": dict(list(failures.items())[:60]),
        "failed": len(failures),
        "passed": not failures,
    }


def keep(corpus: Path | None, reader: Reader, data: bytes) -> None:
    if corpus is not None:
        name = f"{hashlib.sha256(data).hexdigest()[:12]}{Path(reader.file).suffix}"
        folder = corpus / reader.name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="stop after so long, whatever --inputs says")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where failing inputs are kept")
    parser.add_argument("--no-keep", action="store_true", help="try the corpus and add nothing to it")
    args = parser.parse_args()
    report = soak_inputs(args.inputs, args.seed, args.seconds, args.corpus, keeps=not args.no_keep)
    return told(report, report["passed"])


if __name__ == "__main__":
    sys.exit(main())
