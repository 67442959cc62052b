"""A place of ready networks: what is put in comes out by hash, from a folder and over HTTP, and a false file does not."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny import tiny_meta, written_engine
from typedlines import parse

from tsss_edge.artifacts import Engine, ParityRecord
from tsss_edge.deploy import zoo
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.files import read_json, write_json

VERDICT = ParityRecord(
    passed=True,
    miou_reference=70.0,
    miou_engine=69.9,
    miou_drop=0.1,
    pixel_agreement=0.99,
    boundary_agreement=0.98,
    images=10,
    max_drop=0.5,
    data_sha256="0" * 64,
)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "made").mkdir()
    return written_engine(tmp_path / "made/net.int8.xml", tiny_meta()).with_record(parity=VERDICT)


@pytest.fixture
def place(tmp_path: Path, engine: Engine) -> Path:
    zoo.add(engine.path, "camvid-edge-m", tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def served(place: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_network_comes_back_from_a_folder_and_from_the_web(
    tmp_path: Path, place: Path, served: str, engine: Engine
) -> None:
    for number, source in enumerate((str(place), served)):
        found = zoo.get("camvid-edge-m", source, tmp_path / f"out{number}")
        assert found.record == engine.record and found.path.read_bytes() == engine.path.read_bytes()
        card = (found.path.parent / "CARD.md").read_text()
        assert "mIoU 69.90 on 10 pictures" in card and "research use" in card and "tsss-edge train supervised" in card
        assert zoo.list_networks(source).ready["camvid-edge-m"].engine == "net.int8.xml"


def test_a_changed_file_is_not_taken(tmp_path: Path, place: Path, served: str) -> None:
    file = place / "camvid-edge-m/net.int8.xml"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    for source, error in ((str(place), ArtifactError), (served, DataError)):
        with pytest.raises(error, match="SHA-256"):
            zoo.get("camvid-edge-m", source, tmp_path / "out")
        assert not (tmp_path / "out/camvid-edge-m/net.int8.xml").exists()


def test_names_are_no_paths(tmp_path: Path, place: Path, engine: Engine) -> None:
    with pytest.raises(ValueError, match="letters"):
        zoo.add(engine.path, "../evil", place)
    index = read_json(place / "zoo.json", dict)
    entry = index["networks"]["camvid-edge-m"]
    entry["files"]["../../evil"] = entry["files"]["CARD.md"]
    write_json(place / "zoo.json", index)
    with pytest.raises(ArtifactError, match=r"\.\./\.\./evil"):
        zoo.get("camvid-edge-m", str(place), tmp_path / "out")


def test_an_unproven_engine_is_not_put_in(tmp_path: Path) -> None:
    unproven = written_engine(tmp_path / "net.int8.xml", tiny_meta())
    with pytest.raises(ArtifactError, match="not proven"):
        zoo.add(unproven.path, "net", tmp_path / "place")
    assert not (tmp_path / "place").exists()


def test_what_is_missing_is_said(tmp_path: Path, place: Path, served: str) -> None:
    with pytest.raises(ArtifactError, match="no network other"):
        zoo.get("other", str(place), tmp_path)
    with pytest.raises(ArtifactError, match="check --from"):
        zoo.list_networks(f"{served}/nowhere")
    with pytest.raises(ArtifactError, match="camvid-edge-m, camvid-edge-m-taught, camvid-edge-s"):
        zoo.how_to("other")


def test_every_recipe_is_made_of_commands_that_exist(tmp_path: Path) -> None:
    for name, recipe in zoo.recipes().items():
        ran: list[list[str]] = []
        zoo.make(name, Path("set"), tmp_path, lambda words, ran=ran: ran.append(list(words)) or 0)  # type: ignore[misc]
        assert (ran[0][0], ran[-1][0]) == ("train", "build-engine") and len(ran) == len(recipe.make)
        for words in ran:
            parse(words)
            assert not any("{" in word for word in words)
        assert "set" in ran[0] and "--eval-data" in ran[-1]
        assert name in zoo.how_to(name) and shlex.split(recipe.make[-1])[-1] == f"{{out}}/{name}.xml"


def test_a_recipe_goes_on_and_stops_at_a_failure(tmp_path: Path) -> None:
    (tmp_path / "camvid-edge-s/run").mkdir(parents=True)
    (tmp_path / "camvid-edge-s/run/last.pt").touch()
    ran: list[list[str]] = []

    def run(words: object) -> int:
        ran.append(list(words))  # type: ignore[call-overload]
        return 3

    with pytest.raises(ArtifactError, match="ended with 3"):
        zoo.make("camvid-edge-s", Path("set"), tmp_path, run)
    assert len(ran) == 1 and ran[0][-1] == "--resume"


def test_an_engine_of_an_odd_name_does_not_spoil_a_place(tmp_path: Path, place: Path, engine: Engine) -> None:
    odd = written_engine(tmp_path / "made/my net.int8.xml", tiny_meta()).with_record(parity=VERDICT)
    before = (place / zoo.INDEX).read_bytes()
    with pytest.raises(ValueError, match=r"'my net\.int8.*build the engine under such a name"):
        zoo.add(odd.path, "good", place)
    assert (place / zoo.INDEX).read_bytes() == before and not (place / "good").exists()
