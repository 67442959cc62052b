"""From a float ONNX file and a dataset to an INT8 file, by function and by command."""

from __future__ import annotations

import json
from pathlib import Path

import netkit
import pytest
from typer.testing import CliRunner

import tsss_edge.calib.calibrate as module
from tsss_edge.artifacts import OnnxModel
from tsss_edge.calib.calibrate import calibrate, choose_pictures
from tsss_edge.calib.ranges import CalibTable
from tsss_edge.calib.search import ENOUGH, SearchReport, units_of
from tsss_edge.cli import app
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.files import read_json, sha256_file
from tsss_edge.onnxgraph.qdq import PairOptions, explain
from tsss_edge.onnxgraph.sessions import OnnxRuntimeCompiler


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = tmp_path_factory.mktemp("run")
    return export_onnx(netkit.checkpoint(folder / "best.pt").path, folder / "fused.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return netkit.write_set(tmp_path_factory.mktemp("data") / "set", train=10)


@pytest.fixture(autouse=True)
def onnx_runtime_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers on every machine."""
    monkeypatch.setattr(module, "pick_compiler", OnnxRuntimeCompiler)


def test_the_file_says_how_it_was_made(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    result = calibrate(model, data, tmp_path / "q.onnx", method="mse", size=4, seed=3)
    record = result.meta.calibration
    assert record is not None and result.meta.precision == "int8"
    assert (record.method, record.images, record.split, record.seed, record.random) == ("mse", 4, "train", 3, False)
    assert record.onnx_sha256 == model.sha256 and result.meta.checkpoint_sha256 == model.meta.checkpoint_sha256
    dataset = VocDataset.open(data)
    known = {sha256_file(dataset.image_path(i)) for i in dataset.ids("train")}
    assert len(set(record.image_sha256) & known) == 4
    assert OnnxModel.load(tmp_path / "q.onnx") == result


def test_the_table_stands_beside_it(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    written = calibrate(model, data, tmp_path / "q.onnx", size=4, method="minmax")
    table = CalibTable.load(tmp_path / "q.ranges.json")
    assert table.onnx_sha256 == model.sha256 and table.method == "minmax" and table.images == 4
    assert written.meta.calibration is not None and written.meta.calibration.peaks == table.peaks
    assert [t for t, r in table.ranges.items() if r == 255.0] == ["transpose"]  # the picture: known, not measured
    assert all(table.ranges[t] == table.peaks[t] for t in table.ranges if t != "transpose")


def test_seven_bits_are_asked_for_and_recorded(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    args = ["calibrate", str(model.path), "--data", str(data), "--size", "2", "--weight-bits", "7"]
    done = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "q.onnx")])
    assert done.exit_code == 0 and "weights of 7 bits" in done.stdout
    record, table = OnnxModel.load(tmp_path / "q.onnx").meta.calibration, CalibTable.load(tmp_path / "q.ranges.json")
    assert record is not None and record.weight_bits == table.weight_bits == 7
    with pytest.raises(ArtifactError, match=r"weights of 6 bits; 8 .* and 7 .* are there"):
        calibrate(model, data, tmp_path / "six.onnx", options=PairOptions(weight_bits=6))


def test_the_same_choice_gives_the_same_bytes(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    files = [calibrate(model, data, tmp_path / f"{i}.onnx", method="entropy", size=5).sha256 for i in range(2)]
    assert files[0] == files[1]


def test_noise_is_marked(tmp_path: Path, model: OnnxModel, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = calibrate(model, data, tmp_path / "q.onnx", size=2, allow_random=True)
    assert result.meta.calibration is not None and result.meta.calibration.random
    assert "warning: calibrated on NOISE" in capsys.readouterr().err


def test_few_pictures_are_warned_of(
    tmp_path: Path, model: OnnxModel, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate(model, data, tmp_path / "q.onnx", size=4)
    assert "warning: only 4 calibration pictures, 128 or more are advised" in capsys.readouterr().err


# -- auto and search


def test_auto_keeps_one_method_and_writes_what_it_tried(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    result = calibrate(model, data, tmp_path / "q.onnx", method="auto")
    report = read_json(tmp_path / "q.search.json", SearchReport)
    assert result.meta.calibration is not None and result.meta.calibration.method == report.method
    tried = [s for s in report.steps if s.name.startswith("INT8")]
    good = [s.name for s in tried if s.score.drop_high <= ENOUGH]
    assert good == [report.chosen] == [tried[-1].name] or (
        not good and len(tried) == 4 and min(tried, key=lambda s: s.score.change).name == report.chosen
    )
    assert f"INT8 {report.method}" == report.chosen
    assert "<svg" in (tmp_path / "q.search.svg").read_text()


def test_search_gives_layers_back(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    few = PairOptions(float_nodes=units_of(model.graph, PairOptions())[6:])  # six to search in: quick
    whole = calibrate(model, data, tmp_path / "whole.onnx", max_drop=100.0, options=few)
    high = read_json(tmp_path / "whole.search.json", SearchReport).result.score.drop_high
    assert whole.meta.float_nodes == few.float_nodes
    result = calibrate(model, data, tmp_path / "q.onnx", max_drop=high - 1e-6, options=few)
    report = read_json(tmp_path / "q.search.json", SearchReport)
    assert result.meta.float_nodes == report.result.float_nodes and len(result.meta.float_nodes) > len(few.float_nodes)
    reasons = {d.node: d for d in explain(result.graph)}
    assert all(not reasons[node].quantized and "by choice" in reasons[node].reason for node in result.meta.float_nodes)


def test_held_back_pictures_do_not_calibrate(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    options = {"calib_set": None, "size": 512, "seed": 0}
    chosen, held = choose_pictures(model, data, hold_back=True, **options)  # type: ignore[arg-type]
    assert len(held) == 2 and len(chosen.ids) == 8 and not set(held) & set(chosen.ids)
    chosen, held = choose_pictures(model, data, hold_back=False, **options)  # type: ignore[arg-type]
    assert held == () and len(chosen.ids) == 10


def test_a_list_keeps_its_pictures_and_the_rest_judges(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nlist = "mine.txt"\n')
    (tmp_path / "mine.txt").write_text("".join(f"t{i}\n" for i in range(9)))
    chosen, held = choose_pictures(model, data, calib_set=str(tmp_path / "mine.toml"), size=1, seed=0, hold_back=True)
    assert len(chosen.ids) == 9 and held == ("t9",)
    given = {"calib_set": str(tmp_path / "mine.toml"), "size": 1, "seed": 0}
    chosen, held = choose_pictures(model, data, hold_back=False, **given)  # type: ignore[arg-type]
    assert len(chosen.ids) == 9 and held == ()


def test_noise_cannot_judge(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    with pytest.raises(ArtifactError, match="noise tells nothing about methods or layers"):
        calibrate(model, data, tmp_path / "q.onnx", method="auto", allow_random=True)


# -- errors leave nothing behind


def test_an_int8_file_is_refused(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    int8 = calibrate(model, data, tmp_path / "q.onnx", size=2)
    with pytest.raises(ArtifactError, match="is int8 already; calibrate the fp32 file"):
        calibrate(int8, data, tmp_path / "again.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "unknown calibration method 'magic'"),
        ({"size": 0}, "0 calibration pictures"),
        ({"calib_set": "nothing"}, "no CalibSet named"),
    ],
)
def test_bad_choices(tmp_path: Path, model: OnnxModel, data: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        calibrate(model, data, tmp_path / "q.onnx", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_damaged_picture_stops_it(tmp_path: Path, model: OnnxModel) -> None:
    data = netkit.write_set(tmp_path / "data", train=4)
    path = data / "JPEGImages/t2.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"t2\.png"):
        calibrate(model, data, tmp_path / "out/q.onnx")
    assert not (tmp_path / "out").exists()


# -- the command


def test_the_command(tmp_path: Path, model: OnnxModel, data: Path) -> None:
    args = ["calibrate", str(model.path), "--data", str(data), "--size", "4", "--method", "percentile"]
    result = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "q.onnx"), "--json", "-"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["calibration"]["method"] == "percentile" and found["sha256"] == sha256_file(tmp_path / "q.onnx")


@pytest.mark.parametrize(
    ("options", "max_drop"), [([], None), (["--search"], 0.3), (["--search", "--max-drop", "1"], 1.0)]
)
def test_search_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, options: list[str], max_drop: float | None
) -> None:
    seen: dict[str, object] = {}

    def stand_in(*_: object, **given: object) -> None:
        seen.update(given)
        raise ArtifactError("seen enough")

    monkeypatch.setattr(module, "calibrate", stand_in)
    given = ["calibrate", str(model.path), "--data", "d", "--out", "q.onnx", "--method", "auto"]
    CliRunner().invoke(app, [*given, *options])
    assert seen["max_drop"] == max_drop and seen["method"] == "auto"
    seen.clear()
    CliRunner().invoke(app, [*given, "--max-drop", "2"])
    assert (seen["max_drop"], seen["method_drop"]) == (None, 2.0)


def test_a_budget_without_a_use_is_refused(model: OnnxModel) -> None:
    done = CliRunner().invoke(app, ["calibrate", str(model.path), "--data", "d", "--out", "q.onnx", "--max-drop", "1"])
    assert done.exit_code == 2 and "--method auto" in done.output
