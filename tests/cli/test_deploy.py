"""build-engine, triton, bundle, inspect at the command line: what a user types, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from netkit import checkpoint, write_set
from tiny import tiny_onnx

from tsss_edge.artifacts import Engine, OnnxModel
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.deploy import bundle as bundles
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test runs inside tmp_path."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.pt, its graph, the INT8 graph, and a set."""
    root = tmp_path_factory.mktemp("made")
    write_set(root / "data")
    checkpoint(root / "net.pt")
    export_onnx(root / "net.pt", root / "net.onnx")
    calibrate(OnnxModel.load(root / "net.onnx"), root / "data", root / "net.int8.onnx")
    return root


def test_candidates_are_built_gated_and_the_chosen_one_is_kept(made: Path, tmp_path: Path, run: Run) -> None:
    proof = ("--reference", f"{made}/net.pt", "--eval-data", f"{made}/data")
    toml = tmp_path / "t.toml"  # untrained weights lose more than a trained network's INT8 does
    toml.write_text(
        'name = "t"\nbackend = "openvino"\nprecisions = ["int8", "fp32"]\nmax_drop = 100.0\nmin_reference = 0\n'
    )
    code, out, _ = run("build-engine", f"{made}/net.onnx", "--target", str(toml), *proof, "--out", "n.xml")
    assert code == 0
    assert "with the stock tool" in out and ": ovc " in out
    assert "not proven" not in out
    (engine,) = tmp_path.glob("n.*.xml")
    record = Engine.load(engine).record
    assert record.parity is not None and record.latency is not None
    tried = {candidate.precision for candidate in record.build.chosen.candidates}
    assert tried == {"int8", "fp32"}, "INT8 from the graph that lies beside the float one"


def test_a_forced_precision_that_fails_the_gate_is_exit_3(made: Path, tmp_path: Path, run: Run) -> None:
    toml = tmp_path / "t.toml"
    toml.write_text('name = "t"\nbackend = "openvino"\nprecisions = ["int8"]\nmax_drop = 0.0\n')
    code, _, err = run(
        "build-engine", f"{made}/net.int8.onnx", "--target", str(toml), "--precision", "int8",
        "--reference", f"{made}/net.pt", "--eval-data", f"{made}/data", "--out", "n.xml",
    )  # fmt: skip
    assert code == 3 and "none is kept" in err
    assert [p.name for p in tmp_path.iterdir()] == ["t.toml"]


def test_dry_run_writes_nothing_and_is_json_too(made: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("build-engine", f"{made}/net.onnx", "--target", "cpu", "--out", "n.xml", "--dry-run")
    code, out, _ = run(*arguments)
    assert code == 0 and "net.int8.onnx -> n.int8.xml" in out
    rows = json.loads(run(*arguments, "--json", "-")[1])["engines"]
    assert [row["precision"] for row in rows] == ["int8", "bf16", "fp32"]
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_built_again_unless_it_is_a_dry_run(tmp_path: Path, run: Run) -> None:
    engine = build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("cpu"), tmp_path / "t", precision="fp32")
    engine.path.write_bytes(b"damaged")
    code, out, _ = run("build-engine", "t.fp32.xml", "--dry-run")
    assert code == 0 and "would build on this machine" in out and "t.onnx -> t.fp32.xml" in out
    assert engine.path.read_bytes() == b"damaged"
    assert run("build-engine", "t.fp32.xml")[0] == 0
    assert Engine.load(engine.path).record.precision == "fp32"


def test_another_device_gets_a_kit(made: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("build-engine", f"{made}/net.onnx", "--target", "jetson-agx-orin-dla", "--out", "n.engine")
    assert code == 0
    assert "sh n-jetson-agx-orin-dla-kit/build.sh" in out
    assert "2 on the GPU (cast: Cast is not a DLA layer" in out
    names = {p.name for p in (tmp_path / "n-jetson-agx-orin-dla-kit").iterdir()}
    assert {"net.int8.onnx", "net.int8.ranges.json", "calibration.json", "build.sh"} <= names
    code, out, _ = run("inspect", "n-jetson-agx-orin-dla-kit")
    assert code == 0 and "build kit" in out and "build.sh: as built" in out


def test_a_kit_takes_no_signature(made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsss_edge.signing.read_private", lambda path: None)
    given = ("--target", "jetson-agx-orin-dla", "--out", "n.engine", "--sign", "k.pem")
    code, _, err = run("build-engine", f"{made}/net.onnx", *given)
    assert code == 2 and "a kit is signed after its build" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("net.onnx",), 2, "--target and --out are needed"),
        (("net.onnx", "--target", "nope", "--out", "n"), 1, "no Target named 'nope'; choose from cpu"),
        (("none.onnx", "--target", "cpu", "--out", "n"), 1, "none.onnx: no such ONNX file"),
        (("net.onnx", "--target", "cpu", "--out", "n", "--precision", "fp16"), 1, "builds int8, bf16, fp32, not fp16"),
        (("net.onnx", "--target", "cpu", "--out", "n", "--eval-data", "data"), 2, "needs --reference"),
        (("none.xml",), 1, "none.xml: no record none.json beside it"),
        (("none.xml", "--precision", "int8"), 2, "built again as its record says"),
        (("none.xml", "--eval-data", "data"), 2, "give --reference and --eval-data"),
        (("net.onnx", "--target", "cpu", "--out", "n", "--reference", "net.pt"), 2, "give --eval-data too"),
    ],
)
def test_mistakes(made: Path, run: Run, arguments: tuple[str, ...], code: int, says: str) -> None:
    paths = [f"{made}/{a}" if a in ("net.onnx", "data") else a for a in arguments]
    got, _, err = run("build-engine", *paths)
    assert got == code
    assert says in " ".join(err.split())


def test_rebuild_on_the_way_to_segmenting(tmp_path: Path, run: Run) -> None:
    engine = build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("cpu"), tmp_path / "t", precision="fp32")
    write_set(tmp_path / "data")
    engine.path.with_suffix(".bin").write_bytes(b"x")
    pictures = ("data/JPEGImages", "--out", "masks")
    code, _, err = run("segment", "t.fp32.xml", *pictures)
    assert code == 1 and "its hash is not the one" in err
    code, out, err = run("segment", "t.fp32.xml", *pictures, "--rebuild")
    assert code == 0 and out.startswith("9 masks") and "built again" in err


def test_triton_repository_is_proven_before_it_is_written(made: Path, tmp_path: Path, run: Run) -> None:
    random = msgspec.structs.replace(load_target("cpu"), min_reference=0.0)
    engine = build_engine(made / "net.onnx", random, tmp_path / "n", precision="fp32")
    proof = ("--reference", f"{made}/net.pt", "--eval-data", f"{made}/data")
    code, out, _ = run("triton", engine.path.name, "--out", "models", *proof)
    assert code == 0 and "its files passed the gate" in out
    record = json.loads((tmp_path / "models/n/1/model.json").read_text())
    assert record["parity"]["passed"] is True
    assert {p.name for p in (tmp_path / "models/n").iterdir()} == {"1", "config.pbtxt", "labels.txt"}
    assert Engine.load(engine.path).record.parity is None, "the engine's own record is not touched"
    assert run("triton", engine.path.name, "--out", "m", "--eval-data", "d")[0] == 2


def test_triton_writes_nothing_that_fails_the_gate(
    made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine(made / "net.onnx", load_target("cpu"), tmp_path / "n", precision="fp32")

    class Failed:
        def __bool__(self) -> bool:
            return False

        def verdict(self) -> str:
            return "gate failed: lost 9 points"

    monkeypatch.setattr("tsss_edge.parity.check_parity", lambda *args, **options: Failed())
    code, _, err = run(
        "triton", engine.path.name, "--out", "models", "--reference", f"{made}/net.pt", "--eval-data", f"{made}/data"
    )
    assert code == 3 and "lost 9 points" in err
    assert list((tmp_path / "models").iterdir()) == []


def test_bundle_options_reach_the_library(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(bundles, "run_pip", lambda arguments: asked.append(list(arguments)))
    (tmp_path / "scene.txt").write_text("x")
    options = (
        "--python",
        "3.11",
        "--machine",
        "aarch64",
        "--extra",
        "rtx",
        "--require",
        "pytest",
        "--file",
        "scene.txt",
    )
    code, out, _ = run("bundle", "--out", "b", *options, "--level", "0")
    assert code == 0 and "for Python 3.11 on aarch64" in out and "sh b/install.sh" in out
    wheel, download, *more = asked  # an Arm host may be a Jetson, whose OpenCV wants NumPy 1
    assert all(any("numpy" in a for a in arguments) for arguments in more)
    assert wheel[0] == "wheel" and "cp311" in download and "pytest" in download
    assert any(a.endswith("[rtx]") for a in download)
    code, out, _ = run("inspect", "b")
    assert code == 0 and "bundle for a host without a network" in out and "bundle.tar.xz.000: as built" in out
    assert run("bundle", "--out", "c", "--python", "2.7")[0] == 2
    code, _, err = run("bundle", "--out", "c", "--file", "gone")
    assert code == 1 and "gone: no such file or folder to put into the bundle" in err
    assert not (tmp_path / "c").exists()


def test_foreign_prefix_is_told_and_stripped(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tiny_onnx(tmp_path / "t.onnx")
    plan = build_engine(model.path, load_target("rtx"), tmp_path / "t", precision="fp32").path.read_bytes()
    text = b'{"task": "segment"}'
    (tmp_path / "yolo.engine").write_bytes(len(text).to_bytes(4, "little") + text + plan)
    code, _, err = run("inspect", "yolo.engine")
    assert code == 1 and "tsss-edge inspect yolo.engine --strip OUT.engine" in err
    code, out, _ = run("inspect", "yolo.engine", "--strip", "plain.engine")
    assert code == 0 and out.startswith("plain.engine: plan of TensorRT-RTX")
    assert (tmp_path / "plain.engine").read_bytes() == plan


@pytest.mark.parametrize("verb", ["build-engine", "export", "doctor", "inspect", "bundle", "triton", "segment"])
def test_help_has_an_example_and_json(run: Run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert f"Example: tsss-edge {verb}" in " ".join(out.split())
    assert "--json" in out


def test_inspect_and_doctor_as_json(tmp_path: Path, run: Run) -> None:
    tiny_onnx(tmp_path / "t.onnx")
    assert json.loads(run("inspect", "t.onnx", "--json", "-")[1])["facts"]["precision"] == "fp32"
    code, out, _ = run("doctor", "--json", "doctor.json")
    assert code == 0 and "This machine can:" in out
    assert {c["name"] for c in json.loads((tmp_path / "doctor.json").read_text())["checks"]} >= {"CPU", "OpenVINO"}
