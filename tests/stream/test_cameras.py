"""`cameras.toml`: what it may say, and what is refused before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsss_edge.errors import ArtifactError, DataError, TsssEdgeError
from tsss_edge.stream.cameras import CameraSpec, in_shard, read_cameras


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cameras.toml"
    path.write_text(text)
    return path


def test_a_camera_says_what_differs_from_the_defaults(tmp_path: Path) -> None:
    gate, yard = read_cameras(
        written(
            tmp_path,
            """
            [defaults]
            fps = 5
            sinks = ["masks/{name}/", "{name}.jsonl"]
            [[camera]]
            name = "gate"
            uri = "rtsp://user:secret@127.0.0.1/1"
            priority = 3
            encode = "veryfast"
            [[camera]]
            uri = "synthetic://?live=1"
            policy = "latest"
            fps = 12.5
            sinks = ["null://"]
            """,
        )
    )
    assert (gate.name, gate.fps, gate.priority, gate.sinks) == ("gate", 5, 3, ("masks/gate/", "gate.jsonl"))
    assert (gate.encode, yard.encode) == ("veryfast", "auto")
    assert (yard.name, yard.fps, yard.priority, yard.policy) == ("camera-1", 12.5, 1, "latest")


CAMERA = '[[camera]]\nname = "a"\nuri = "synthetic://"\n'


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("", ArtifactError, "missing required field `camera`"),
        ("camera = []", DataError, "no \\[\\[camera\\]\\]; expected at least one"),
        ("[[camera]]\nname = 'a'", DataError, "camera number 1: .*missing required field `uri`"),
        (CAMERA + "size = 3", DataError, "unknown field `size`"),
        (CAMERA + "fps = 0", DataError, "fps 0.*more than 0"),
        (CAMERA + "priority = 0", DataError, "priority 0; expected 1 to 100"),
        (CAMERA + "sinks = []", DataError, "no sinks"),
        (CAMERA + "encode = 'slow'", DataError, "camera number 1: Invalid enum value 'slow'"),
        (CAMERA + "sinks = ['x.what']", DataError, "unknown kind of sink"),
        (CAMERA + "sinks = ['display://0']", DataError, "is for one source; use --web"),
        (CAMERA + "sinks = ['-']", DataError, "is for one source"),
        (CAMERA + CAMERA, DataError, "name 'a' stands 2 times"),
        (CAMERA + "sinks = ['x.mp4']\n" + CAMERA.replace("a", "b", 2), ArtifactError, "not a valid"),
        ("[[camera]]\nname = '../x'\nuri = 'synthetic://'", DataError, "expected letters"),
        ("[[camera]]\nname = 'a'\nuri = 'no-such.mp4'", DataError, "no such file"),
        (
            CAMERA + "sinks = ['x.jsonl']\n" + CAMERA.replace('"a"', '"b"') + "sinks = ['./x.jsonl']",
            DataError,
            "two sinks write the same file; give each its own",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, error: type[TsssEdgeError], told: str) -> None:
    with pytest.raises(error, match=told):
        read_cameras(written(tmp_path, text))


def test_no_camera_writes_over_what_another_reads(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    text = f"[[camera]]\nname = 'a'\nuri = '{tmp_path}/a.mp4'\nsinks = ['{tmp_path}/b.mp4']\n"
    with pytest.raises(DataError, match=r"b.mp4: is where .*b.mp4 is read from"):
        read_cameras(written(tmp_path, f"{text}[[camera]]\nname = 'b'\nuri = '{tmp_path}/b.mp4'\n"))


def test_each_camera_is_in_one_shard_and_few_move_when_a_shard_is_added() -> None:
    cameras = tuple(CameraSpec(uri="synthetic://", name=f"cam-{n}") for n in range(1000))
    four = {c.name: k for k in range(4) for c in in_shard(cameras, f"{k}/4")}
    five = {c.name: k for k in range(5) for c in in_shard(cameras, f"{k}/5")}
    assert len(four) == len(five) == 1000
    assert all(200 < list(four.values()).count(k) < 300 for k in range(4))
    moved = [name for name in four if four[name] != five[name]]
    assert all(five[name] == 4 for name in moved) and 150 < len(moved) < 250


@pytest.mark.parametrize(("shard", "told"), [("4/4", "K from 0 to N - 1"), ("x", "expected K/N"), ("1/2", "none of 1")])
def test_a_shard_that_is_none(shard: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        in_shard((CameraSpec(uri="synthetic://", name="a"),), shard)
