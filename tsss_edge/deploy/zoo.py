"""Ready networks: a folder or a web address that holds engines by name, each file with its SHA-256; and how ours are made.

A *place* is such a folder. PLACE/zoo.json names everything in it; PLACE/NAME/ holds the engine's files, its record and
CARD.md. A release asset, a bucket or a web server serves a place as it is. An engine is code: only files whose hash
stands in zoo.json are written, and `Engine.load` checks them against the record once more.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Engine, Struct
from tsss_edge.config import read_toml
from tsss_edge.data.fetch import download
from tsss_edge.disk import atomic_path, held
from tsss_edge.errors import ArtifactError
from tsss_edge.files import decode_json, read_json, sha256_file, write_bytes, write_json

INDEX, CARD = "zoo.json", "CARD.md"
MAX_INDEX = 4 << 20  # bytes; a card is a few KiB
TIMEOUT_S = 30.0
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # names of networks and files become parts of paths


class Recipe(Struct, frozen=True):
    """How a network of ours is made. `make`: `tsss-edge` commands; the last one writes {out}/NAME.xml."""

    summary: str
    arch: str
    data: str
    license: str
    limits: str
    make: tuple[str, ...]


class ZooFile(Struct, frozen=True):
    """What a file must be."""

    sha256: str
    bytes: int


class ZooEntry(Struct, frozen=True):
    """A network in a place. `engine`: the file that commands take. `files`: all of them, record and card included."""

    summary: str
    engine: str
    files: dict[str, ZooFile]


class ZooIndex(Struct, frozen=True):
    """PLACE/zoo.json."""

    networks: dict[str, ZooEntry] = msgspec.field(default_factory=dict)
    format: int = 1


class ZooList(Struct, frozen=True):
    """What `zoo` lists: networks to fetch, and networks that we know how to make."""

    place: str
    ready: dict[str, ZooEntry]
    recipes: dict[str, Recipe]

    def summary(self) -> str:
        """For a terminal."""
        lines = [f"{name:<20} {entry.summary}" for name, entry in self.ready.items()]
        if self.place:
            lines.insert(0, f"ready in {self.place}: {len(self.ready) or 'none'}")
        lines += ["to make (`tsss-edge zoo NAME` says how):"]
        lines += [f"{name:<20} {recipe.summary}" for name, recipe in self.recipes.items()]
        return "\n".join(lines)


def recipes() -> dict[str, Recipe]:
    """The networks that we know how to make, by name."""
    return read_toml(Path(__file__).with_name("zoo.toml"), dict[str, Recipe])


def list_networks(place: str | None) -> ZooList:
    """Everything that `place` holds, and the recipes. Raises: as `read_index`."""
    ready = read_index(place).networks if place else {}
    return ZooList(place=place or "", ready=ready, recipes=recipes())


def read_index(place: str) -> ZooIndex:
    """zoo.json of a folder or of an http(s) address. Raises: ArtifactError: not there, damaged, or with a name like a path."""
    if is_address(place):
        address = f"{place.rstrip('/')}/{INDEX}"
        index = decode_json(_get(address), ZooIndex, Path(address), "ask who serves it")
    else:
        index = read_json(Path(place) / INDEX, ZooIndex, "ask who made it")
    for name, entry in index.networks.items():
        for part in (name, entry.engine, *entry.files):
            if not PLAIN.fullmatch(part):
                raise ArtifactError(f"{place}: {INDEX} names {part!r}; expected letters, digits, '.', '_' and '-' only")
        if entry.engine not in entry.files:
            raise ArtifactError(f"{place}: {INDEX} lists no file {entry.engine} for {name}")
    return index


def is_address(place: str) -> bool:
    """Whether a place is on the web; else it is a folder."""
    return place.startswith(("http://", "https://"))


def _get(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(MAX_INDEX + 1)
    except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError
        raise ArtifactError(f"{address}: cannot be read ({error}); check --from") from error
    if len(data) > MAX_INDEX:
        raise ArtifactError(f"{address}: larger than {MAX_INDEX} bytes, expected a list of networks")
    return data


def get(name: str, place: str, out: Path) -> Engine:
    """Fetch a network into OUT/NAME and check it. What is there already is kept; an interrupted download goes on.

    Raises: ArtifactError: no such network, or a file is not the one that zoo.json names; DataError: see `download`.
    """
    entry = read_index(place).networks.get(name)
    if entry is None:
        raise ArtifactError(f"{place}: no network {name}; `tsss-edge zoo --from {place}` lists what is there")
    folder = out / name
    for file, wanted in sorted(entry.files.items(), key=lambda item: item[0].endswith(".json")):  # the record last
        _fetch(f"{place.rstrip('/')}/{name}/{file}", folder / file, wanted)
    return Engine.load(folder / entry.engine)


def _fetch(source: str, path: Path, wanted: ZooFile) -> None:
    if is_address(source):
        return download(source, path, sha256=wanted.sha256, size=wanted.bytes)
    if path.is_file() and sha256_file(path) == wanted.sha256:
        return
    if not Path(source).is_file():
        raise ArtifactError(f"{source}: named in {INDEX} but missing; ask who made the folder")
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)
        if (found := sha256_file(temporary)) != wanted.sha256:
            raise ArtifactError(f"{source}: expected SHA-256 {wanted.sha256}, got {found}; ask who made the folder")


def add(engine_path: Path, name: str, place: Path, *, card: Path | None = None, summary: str = "") -> ZooEntry:
    """Put an engine into a place, under `name`, with its record and its card; zoo.json changes last.

    Args:   card: Markdown; without it one is written from the record and, where we have one, the recipe of that name.
    Raises: ArtifactError: the engine is damaged or has no passed gate; ValueError: a name that is no plain name.
    """
    if not PLAIN.fullmatch(name):
        raise ValueError(f"{name!r}: expected letters, digits, '.', '_' and '-' only")
    engine = Engine.load(engine_path)
    if engine.record.parity is None or not engine.record.parity.passed:
        raise ArtifactError(f"{engine_path}: not proven; run `tsss-edge parity {engine_path} --reference ...` first")
    record = Engine.record_path(engine.path)
    files = {file: engine.path.parent / file for file in (*engine.record.files, record.name)}
    if odd := [file for file in files if not PLAIN.fullmatch(file)]:
        raise ValueError(
            f"{odd[0]!r}: expected letters, digits, '.', '_' and '-' only; build the engine under such a name"
        )
    with held(place / INDEX, f"{place / INDEX}: this list of networks"):
        return _add(engine, files, name, place, card, summary)


def _add(engine: Engine, files: dict[str, Path], name: str, place: Path, card: Path | None, summary: str) -> ZooEntry:
    index = read_index(str(place)) if (place / INDEX).is_file() else ZooIndex()
    recipe = recipes().get(name)
    text = card.read_text() if card else card_text(name, engine, recipe)
    for file, source in files.items():
        with atomic_path(place / name / file) as temporary:
            shutil.copyfile(source, temporary)
    write_bytes(place / name / CARD, text.encode())
    entry = ZooEntry(
        summary=summary or (recipe.summary if recipe else f"{engine.meta.arch}, {len(engine.meta.classes)} classes"),
        engine=engine.path.name,
        files={file: _described(place / name / file) for file in (*files, CARD)},
    )
    write_json(place / INDEX, msgspec.structs.replace(index, networks={**index.networks, name: entry}))
    return entry


def _described(path: Path) -> ZooFile:
    return ZooFile(sha256=sha256_file(path), bytes=path.stat().st_size)


def card_text(name: str, engine: Engine, recipe: Recipe | None) -> str:
    """The card of an engine: what it is, what it was measured at, what it must not be used for."""
    record, parity = engine.record, engine.record.parity
    height, width = record.meta.preprocess.size_hw
    lines = [f"# {name}", "", recipe.summary if recipe else f"{record.meta.arch}, {width}x{height}", ""]
    lines += [f"- Classes: {', '.join(record.meta.classes.names)}"]
    lines += [f"- Engine: {record.backend}, {record.precision}, input {width}x{height}, made by {record.tool}"]
    if parity:
        lines.append(
            f"- Measured: mIoU {parity.miou_engine:.2f} on {parity.images} pictures, its PyTorch network {parity.miou_reference:.2f}"
        )
    if record.latency:
        lines.append(f"- Latency: {record.latency.p50_ms:.2f} ms (median), on {record.device or 'an unnamed device'}")
    if recipe:
        lines += [f"- Data: {recipe.data}", f"- Licence: {recipe.license}", f"- Limits: {recipe.limits}"]
        lines += ["", "Made by:", "", "```sh", *(f"tsss-edge {command}" for command in recipe.make), "```"]
    return "\n".join([*lines, ""])


def how_to(name: str) -> str:
    """What `zoo NAME` says of a network that we do not ship. Raises: ArtifactError: no such recipe."""
    recipe = _recipe(name)
    lines = [f"{name}: {recipe.summary}", f"  data: {recipe.data}", f"  licence: {recipe.license}"]
    lines += [f"  limits: {recipe.limits}", f"make it: tsss-edge zoo {name} --make --data DIR --out zoo, which runs"]
    return "\n".join([*lines, *(f"  tsss-edge {command}" for command in recipe.make)])


def _recipe(name: str) -> Recipe:
    known = recipes()
    if name not in known:
        raise ArtifactError(f"no network {name}; known are {', '.join(known)}; give --from for others")
    return known[name]


def make(name: str, data: Path, out: Path, run: Callable[[Sequence[str]], int]) -> Path:
    """Run a network's recipe on a set: OUT/NAME holds runs and engine. Run again it goes on where training stopped.

    Args:   run: takes the arguments of `tsss-edge` and gives its exit code.
    Raises: ArtifactError: no such recipe, or a command of it failed.
    """
    folder = out / name
    for command in _recipe(name).make:
        words = [word.format(data=data, out=folder) for word in shlex.split(command)]
        if words[0] == "train" and (Path(words[words.index("--out") + 1]) / "last.pt").is_file():
            words.append("--resume")
        print(f"tsss-edge {shlex.join(words)}", file=sys.stderr, flush=True)
        if code := run(words):
            raise ArtifactError(
                f"`tsss-edge {shlex.join(words)}` ended with {code}; mend what it says, and run it again"
            )
    return folder
