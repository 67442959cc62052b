"""The accuracy gate: fake back ends with planted differences, real records and graphs on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chain
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny import written_engine

import tsss_edge.parity
from tsss_edge.artifacts import (
    Artifact,
    CalibrationRecord,
    Checkpoint,
    CheckpointMeta,
    Classes,
    Engine,
    OnnxMeta,
    OnnxModel,
    Precision,
    Preprocess,
)
from tsss_edge.backends.fake import FakeBackend, brightness_cells
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.files import sha256_file
from tsss_edge.parity import ParityReport, check_parity
from tsss_edge.parity.verdict import StageResult, guilty_step

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
SPEC = Preprocess(size_hw=(64, 96))
Answer = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


def wrong_columns(columns: int) -> Answer:
    """The answer of the default fake, but the class after it in the first `columns` of the 12 columns of cells."""

    def answer(images: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
        ids = brightness_cells(images, k)
        ids[:, :, :columns] = (ids[:, :, :columns] + 1) % k
        return ids

    return answer


@dataclass
class World:
    """A data set, a checkpoint, a float and an INT8 graph and an engine on disk; `answers` says what each one answers."""

    root: Path
    answers: dict[str, Answer] = field(default_factory=dict)  # file name -> answer; others are right
    opened: list[str] = field(default_factory=list)
    nan_in: str = ""
    objectness: set[str] = field(default_factory=set)  # files with that output

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def reference(self) -> Path:
        return self.root / "run" / "best.pt"

    @property
    def engine(self) -> Path:
        return self.root / "fused.int8.xml"

    def open(self, model: Artifact | Path, **_: object) -> FakeBackend:
        path = model if isinstance(model, Path) else model.path
        self.opened.append(path.name)
        answer = self.answers.get(path.name, brightness_cells)
        backend = FakeBackend(CLASSES, SPEC, answer=answer, objectness=path.name in self.objectness)
        backend.name = f"fake {path.name}"
        if path.name == self.nan_in:
            infer = backend.infer

            def infer_nan(images: NDArray[np.uint8]) -> Any:
                outputs = infer(images)
                outputs["logits"][0, 0, 0, 0] = np.nan
                return outputs

            backend.infer = infer_nan  # type: ignore[method-assign]
        return backend

    def check(self, **options: Any) -> ParityReport:
        return check_parity(self.engine, self.reference, self.data, **options)


def write_data(root: Path, images: int = 6, seed: int = 0) -> None:
    """Pictures of flat 32x32 blocks, 64x96, whose masks are the brightness classes exactly."""
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES.names) + "\n")
    names = [f"p{i}" for i in range(images)]
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")
    rng = np.random.default_rng(seed)
    for name in names:
        ids = rng.integers(0, 4, (2, 3)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
        Image.fromarray((ids * 64 + 32)[..., None].repeat(3, -1)).save(root / f"JPEGImages/{name}.png")
        write_mask(root / f"SegmentationClass/{name}.png", ids)


def write_graph(
    path: Path, checkpoint: Checkpoint, precision: Precision, calibration: CalibrationRecord | None
) -> OnnxModel:
    meta = OnnxMeta(
        arch="edge-s", classes=CLASSES, preprocess=SPEC, head="logits", objectness=False, precision=precision,
        checkpoint_sha256=checkpoint.sha256, calibration=calibration,
    )  # fmt: skip
    graph = chain.int8_chain() if precision == "int8" else chain.float_chain()
    return OnnxModel.save(path, graph, meta)


def write_engine(path: Path, source: OnnxModel) -> Engine:
    return written_engine(path, source.meta, onnx=source.path.name, onnx_sha256=source.sha256)


def recalibrated(engine: Engine, **changes: Any) -> Engine:
    """The engine, with another calibration in its record."""
    assert engine.meta.calibration is not None
    calibration = msgspec.structs.replace(engine.meta.calibration, **changes)
    return engine.with_record(meta=msgspec.structs.replace(engine.meta, calibration=calibration))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    write_data(world.data)
    meta = CheckpointMeta(stage="supervised", arch="edge-s", classes=CLASSES, preprocess=SPEC)
    checkpoint = Checkpoint.save(world.reference, meta, {})
    floating = write_graph(tmp_path / "fused.onnx", checkpoint, "fp32", None)
    calibration = CalibrationRecord(
        method="minmax", images=2, image_list_sha256="0" * 64, image_sha256=("0" * 64,), split="train", seed=0,
        onnx_sha256=floating.sha256, onnx=floating.path.name,
    )  # fmt: skip
    write_engine(world.engine, write_graph(tmp_path / "fused.int8.onnx", checkpoint, "int8", calibration))
    monkeypatch.setattr(tsss_edge.parity, "open_backend", world.open)
    return world


def test_equal_engine_passes_and_the_verdict_is_in_its_record(world: World) -> None:
    report = world.check()
    assert report
    assert report.miou_reference == report.miou_engine > 99.0  # where four blocks meet, upsampling rounds the corner
    assert report.miou_drop == 0.0
    assert (report.pixel_agreement, report.boundary_agreement) == (1.0, 1.0)
    assert [s.name for s in report.stages] == ["PyTorch", "ONNX", "INT8 ONNX", "engine"]
    assert world.opened == ["best.pt", "fused.onnx", "fused.int8.onnx", "fused.int8.xml"]
    assert report.worst == () and report.guilty == "" and report.problems == ()
    stored = Engine.load(world.engine).record.parity
    assert stored is not None and stored.passed and stored.images == 6
    assert stored.data_sha256 == VocDataset.open(world.data).split_hash("val")
    assert report.verdict().startswith("gate passed: mIoU 99.") and "(drop +0.00, " in report.verdict()


def test_a_server_answers_in_the_engine_s_place(world: World) -> None:
    served = Path("triton://gpu-1/fused")
    world.answers["fused"] = wrong_columns(3)
    report = world.check(served=served, max_drop=0.5)
    assert not report and report.miou_drop > 10 and report.stages[-1].file == "triton://gpu-1/fused"
    assert world.opened == ["best.pt", "fused.onnx", "fused.int8.onnx", "fused"]
    assert Engine.load(world.engine).record.parity is None  # it is the server's verdict, not the file's


def test_a_server_of_another_network_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Classes(names=("background", "dog", "cat", "cow"))

    def opened(model: Artifact | Path, **options: object) -> FakeBackend:
        return FakeBackend(other, SPEC) if isinstance(model, Path) else world.open(model, **options)

    monkeypatch.setattr(tsss_edge.parity, "open_backend", opened)
    with pytest.raises(ArtifactError, match=r"triton:/gpu-1/fused: its classes are not those of .*fused.int8.xml"):
        world.check(served=Path("triton://gpu-1/fused"))


def test_known_difference_in_numbers(world: World) -> None:
    world.answers[world.engine.name] = wrong_columns(3)
    report = world.check(max_drop=50.0)
    assert report  # allowed to drop that much
    assert report.pixel_agreement == pytest.approx(0.75, abs=0.02)  # a quarter of the columns; upsampling blurs the cut
    assert 0.5 < report.boundary_agreement != report.pixel_agreement
    assert 10 < report.miou_drop < 50
    low, high = report.drop_interval
    assert low <= report.miou_drop <= high and low < high
    assert len(report.worst) == 6 and report.worst[0].agreement <= report.worst[-1].agreement
    assert all(image.lost_pixels > 1000 and image.won_pixels == 0 for image in report.worst)
    changes = [c.change for c in report.per_class.values() if c.change is not None]
    assert changes and max(changes) < 0
    assert sum(changes) / len(changes) == pytest.approx(-report.miou_drop)


def test_worst_pictures_come_first_and_unlabelled_pixels_are_not_lost(world: World) -> None:
    """Picture p2 differs everywhere, p5 in its left half, of which nothing is labelled; the others not at all."""
    dataset = VocDataset.open(world.data)
    pixels = {name: dataset.image(name)[:, :, 0] for name in ("p2", "p5")}

    def answer(images: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
        ids = brightness_cells(images, k)
        for name, columns in (("p2", 12), ("p5", 6)):
            if np.array_equal(images[0, :, :, 0], pixels[name]):
                ids[:, :, :columns] = (ids[:, :, :columns] + 1) % k
        return ids

    mask = dataset.mask("p5").copy()
    mask[:, :60] = 255
    write_mask(dataset.mask_path("p5"), mask)
    world.answers[world.engine.name] = answer
    worst = world.check().worst
    assert [image.id for image in worst] == ["p2", "p5"]
    assert worst[0].agreement < 0.1 and worst[0].lost_pixels > 5500
    assert 0.4 < worst[1].agreement < 0.6 and worst[1].lost_pixels == 0


def test_boundary_agreement_looks_at_the_band_only(world: World) -> None:
    """One flat picture, wrong far from any boundary: pixels differ, the band is empty and agrees."""
    name = VocDataset.open(world.data).image_path("p0")
    Image.fromarray(np.full((64, 96, 3), 32, np.uint8)).save(name)
    write_mask(world.data / "SegmentationClass/p0.png", np.zeros((64, 96), np.uint8))
    (world.data / "ImageSets/Segmentation/val.txt").write_text("p0\n")
    world.answers[world.engine.name] = wrong_columns(6)
    report = world.check()
    assert report.boundary_agreement == 1.0
    assert report.pixel_agreement == pytest.approx(0.5, abs=0.05)


def test_objectness_is_compared_where_both_have_it(world: World) -> None:
    world.objectness = {"best.pt", "fused.int8.xml"}
    assert world.check().stages[-1].objectness_agreement == 1.0

    def one_object_less(images: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
        ids = np.ones_like(brightness_cells(images, k))
        ids[:, :2, :3] = 0  # background in 6 of 96 cells
        return ids

    world.answers = {
        "best.pt": lambda images, k: np.ones_like(brightness_cells(images, k)),
        "fused.int8.xml": one_object_less,
    }
    report = world.check(max_drop=100.0)
    assert report.stages[-1].objectness_agreement == pytest.approx(1 - 6 / 96)
    assert report.stages[1].objectness_agreement is None
    assert "objectness agreement 0.9375" in report.summary()


def test_verdict_is_not_stored_when_told_so(world: World) -> None:
    assert world.check(store=False)
    assert Engine.load(world.engine).record.parity is None


@pytest.mark.parametrize(
    ("faulty", "words"),
    [
        (("fused.onnx", "fused.int8.onnx", "fused.int8.xml"), "export (PyTorch -> ONNX) loses"),
        (("fused.int8.onnx", "fused.int8.xml"), "quantization (ONNX -> INT8 ONNX) loses"),
        (("fused.int8.xml",), "the engine build (INT8 ONNX -> engine) loses"),
    ],
)
def test_drop_fails_and_the_guilty_step_is_named(world: World, faulty: tuple[str, ...], words: str) -> None:
    world.answers.update(dict.fromkeys(faulty, wrong_columns(2)))
    report = world.check()
    assert not report
    assert words in report.problems[0] and words in report.verdict() and words in report.guilty
    stored = Engine.load(world.engine).record.parity
    assert stored is not None and not stored.passed
    assert stored.miou_drop == report.miou_drop


def test_a_fault_that_a_later_stage_hides_is_not_blamed(world: World) -> None:
    """The INT8 graph of ONNX Runtime is off, the engine is not: nothing is served wrong, the gate passes."""
    world.answers["fused.int8.onnx"] = wrong_columns(2)
    report = world.check()
    assert report
    assert report.stages[2].drop > 5 > abs(report.stages[3].drop)


def test_too_good_fails_unless_allowed(world: World) -> None:
    world.answers["best.pt"] = wrong_columns(2)  # the reference is worse than its engine
    report = world.check()
    assert not report
    assert report.miou_drop < -0.5
    assert "too good to be true" in report.problems[0] and "gains" in report.guilty
    assert world.check(allow_gain=True)


def test_gate_is_on_the_budget_itself(world: World) -> None:
    world.answers[world.engine.name] = wrong_columns(1)
    drop = world.check(max_drop=100.0).miou_drop
    assert world.check(max_drop=drop)
    assert not world.check(max_drop=drop - 1e-6)


def test_leak_fails_unless_allowed_and_is_written_down(world: World) -> None:
    dataset = VocDataset.open(world.data)
    engine = Engine.load(world.engine)
    assert engine.record.meta.calibration is not None
    used = (sha256_file(dataset.image_path("p1")), sha256_file(dataset.image_path("p4")), "1" * 64)
    recalibrated(engine, image_sha256=used)
    report = world.check()
    assert not report and report.leak == 2
    assert "2 of 6 evaluation pictures also calibrated the engine" in report.problems[0]
    allowed = world.check(allow_leak=True)
    assert allowed and allowed.leak == 2 and any("leak: 2 of 6" in note for note in allowed.notes)
    stored = Engine.load(world.engine).record.parity
    assert stored is not None and stored.leak == 2


def test_nan_logits_fail_even_where_the_labels_agree(world: World) -> None:
    world.nan_in = "fused.int8.xml"
    report = world.check(max_drop=100.0)
    assert not report
    assert "NaN or infinity in the logits of 6 of 6 pictures at stage engine" in report.problems[0]


def test_calibrated_on_noise_is_noted(world: World) -> None:
    engine = Engine.load(world.engine)
    assert engine.record.meta.calibration is not None
    recalibrated(engine, random=True)
    assert any("calibrated on noise" in note for note in world.check().notes)


# ---------------------------------------------------------------------------------------------------------------------
# Which files belong together


def test_reference_of_another_engine_is_refused(world: World) -> None:
    other = Checkpoint.save(world.root / "other.pt", Checkpoint.load(world.reference).meta, {}, resume={"a": 1})
    with pytest.raises(ArtifactError, match=r"made from checkpoint .* give its own checkpoint"):
        check_parity(world.engine, other.path, world.data)
    assert world.opened == []


def test_other_preprocessing_is_refused(world: World) -> None:
    meta = msgspec.structs.replace(Checkpoint.load(world.reference).meta, preprocess=Preprocess(size_hw=(32, 96)))
    other = Checkpoint.save(world.root / "other.pt", meta, {})
    engine = Engine.load(world.engine)
    engine.with_record(meta=msgspec.structs.replace(engine.meta, checkpoint_sha256=other.sha256))
    with pytest.raises(ArtifactError, match="different preprocessing"):
        check_parity(world.engine, other.path, world.data)


def test_graphs_that_are_gone_are_left_out_with_a_note(world: World) -> None:
    (world.root / "fused.onnx").unlink()
    (world.root / "fused.int8.onnx").unlink()
    world.answers[world.engine.name] = wrong_columns(2)
    report = world.check()
    assert [s.name for s in report.stages] == ["PyTorch", "engine"]
    assert sum("not beside it" in note for note in report.notes) == 2
    assert "something between PyTorch and the engine" in report.guilty


def test_graphs_that_are_given_are_known_by_hash_and_nothing_is_searched(world: World, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a/b/c"
    elsewhere.mkdir(parents=True)
    moved = OnnxModel.load((tmp_path / "fused.onnx").rename(elsewhere / "f.onnx"))
    int8 = OnnxModel.load(tmp_path / "fused.int8.onnx")
    report = world.check(graphs=[int8, moved])
    assert [s.file for s in report.stages] == ["best.pt", "f.onnx", "fused.int8.onnx", "fused.int8.xml"]
    report = world.check(graphs=[moved])
    assert [s.file for s in report.stages] == ["best.pt", "f.onnx", "fused.int8.xml"]


def test_only_the_files_that_the_record_names_are_read(world: World, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"not a graph")
    (tmp_path / "fused.onnx").write_bytes(b"the right name, another content")
    report = world.check()
    assert [s.file for s in report.stages] == ["best.pt", "fused.int8.onnx", "fused.int8.xml"]


def test_onnx_and_checkpoint_can_be_checked_too(world: World) -> None:
    int8 = check_parity(world.root / "fused.int8.onnx", world.reference, world.data)
    assert [s.name for s in int8.stages] == ["PyTorch", "ONNX", "INT8 ONNX"]
    assert [s.name for s in check_parity(world.reference, world.reference, world.data).stages] == [
        "PyTorch",
        "checkpoint",
    ]


def test_engine_changed_after_the_build_is_refused_and_trusting_it_stores_nothing(world: World) -> None:
    world.engine.write_bytes(b"<evil/>")
    with pytest.raises(ArtifactError, match="its hash is not the one"):
        world.check()
    assert world.check(trust=True)
    assert Engine.load(world.engine, trust=True).record.parity is None


def test_other_classes_and_missing_split_are_data_errors(world: World) -> None:
    with pytest.raises(DataError, match="no such split"):
        world.check(split="test")
    (world.data / "classes.txt").write_text("background\ncat\ndog\nsheep\n")
    with pytest.raises(DataError, match="trained for"):
        world.check()


# ---------------------------------------------------------------------------------------------------------------------
# What is handed on


def test_json_has_the_keys_of_the_contract(world: World, tmp_path: Path) -> None:
    report = world.check(report_dir=tmp_path / "report")
    keys = set(msgspec.json.decode((tmp_path / "report/parity.json").read_bytes()))
    contract = {"passed", "miou_reference", "miou_engine", "miou_drop", "pixel_agreement", "boundary_agreement"}
    assert contract | {"images", "stages"} <= keys
    assert msgspec.json.decode(msgspec.json.encode(report), type=ParityReport) == report


def test_summary_shows_stages_and_worst_classes(world: World) -> None:
    world.answers[world.engine.name] = wrong_columns(4)
    text = world.check().summary()
    for part in ("gate failed", "INT8 ONNX", "fake fused.int8.xml", "largest step: the engine build", "IoU of "):
        assert part in text


def test_small_sets_are_called_unsure(world: World) -> None:
    world.answers[world.engine.name] = wrong_columns(1)
    drop = world.check(max_drop=100.0).miou_drop
    assert any("more than 6 pictures" in note for note in world.check(max_drop=drop + 0.01).notes)


# ---------------------------------------------------------------------------------------------------------------------
# Inside the INT8 graph


def replace_int8(world: World, graph: Any) -> None:
    """Write another INT8 graph and make the engine's record name it."""
    old = OnnxModel.load(world.root / "fused.int8.onnx")
    Engine.load(world.engine).with_record(onnx_sha256=OnnxModel.save(old.path, graph, old.meta).sha256)


def test_failed_quantization_names_the_layer(world: World) -> None:
    replace_int8(world, chain.int8_chain(bias={1: 1.0}))
    world.answers.update(dict.fromkeys(("fused.int8.onnx", "fused.int8.xml"), wrong_columns(2)))
    report = world.check()
    assert "quantization (ONNX -> INT8 ONNX) loses" in report.problems[0]
    assert "the quantization error enters at layer conv1 " in report.problems[1]
    assert "layer conv1" in report.verdict()


@pytest.mark.parametrize("fault", ["input_scale", "weight_scale"])
def test_impossible_scale_fails_though_the_labels_agree(world: World, fault: str) -> None:
    """In the middle of a trained network it may cost next to nothing, and is wrong all the same."""
    replace_int8(world, chain.int8_chain(**{fault: {1: 8.0}}))
    report = world.check()
    assert not report and report.miou_drop == 0.0
    assert report.problems[0].startswith("INT8 ONNX: layer conv1: ")


def test_quantized_output_fails_though_the_labels_agree(world: World) -> None:
    replace_int8(world, chain.int8_chain(output=True))
    report = world.check()
    assert not report and report.miou_drop == 0.0
    assert report.problems[0].startswith("INT8 ONNX: output logits is quantized")
    stored = Engine.load(world.engine).record.parity
    assert stored is not None and not stored.passed


def test_form_is_judged_without_the_float_graph(world: World) -> None:
    replace_int8(world, chain.int8_chain(output=True))
    (world.root / "fused.onnx").unlink()
    report = world.check()
    assert not report and report.layers is None
    assert report.problems[0].startswith("INT8 ONNX: output logits is quantized")


def test_layers_of_a_healthy_graph_are_reported(world: World) -> None:
    report = world.check()
    assert report and report.layers is not None and len(report.layers.layers) == 3 and report.layers.guilty == ""


def test_a_gate_cannot_pass_by_being_empty() -> None:
    """A reference that draws one class, or no better than lots do, proves nothing, whatever the engine does."""
    from types import SimpleNamespace

    from tsss_edge.metrics import ConfusionMatrix
    from tsss_edge.parity.verdict import empty_reference

    def stage(prediction: list[int]) -> Any:
        matrix = ConfusionMatrix(3)
        matrix.update(np.array([prediction], np.uint8), np.array([[0, 0, 1, 1, 2, 2]], np.uint8))
        return SimpleNamespace(matrix=matrix)

    names = ("background", "cat", "dog")
    assert "labels every pixel cat" in empty_reference(stage([1] * 6), names, 0.0)[0]
    # lots: each class has a third of the pixels, so p / K = 1/9 is hit of 1/3 + 1/3 - 1/9 = 5/9 covered: 20 percent
    assert stage([0] * 6).matrix.chance == pytest.approx(20.0)
    poor = stage([0, 1, 1, 2, 0, 2])  # IoU 1/3 each
    assert "mIoU 33.33, expected at least 40.00 (twice" in empty_reference(poor, names, None)[0]
    assert empty_reference(poor, names, 30.0) == ()
    assert "expected at least 50.00 (--min-reference)" in empty_reference(poor, names, 50.0)[0]
    assert empty_reference(stage([0, 0, 1, 1, 2, 0]), names, None) == ()


def test_the_step_that_loses_is_named_though_all_is_less_than_a_point_and_another_gains() -> None:
    mious = {"PyTorch": 70.0, "ONNX": 70.3, "INT8 ONNX": 69.6, "engine": 69.5}
    steps = zip(mious, mious.values(), (70.0, *mious.values()), strict=False)
    stages = [StageResult(name, "", "", miou, 70.0 - miou, before - miou, 1.0, 1.0) for name, miou, before in steps]
    assert guilty_step(stages) == "quantization (ONNX -> INT8 ONNX) loses 0.70 of 0.50 points"
    stages[-2:] = [msgspec.structs.replace(stages[-1], name="INT8 ONNX", drop=-0.2, step=0.1)]
    assert guilty_step(stages).startswith("export (PyTorch -> ONNX) gains 0.30")


def test_pictures_of_the_report_are_the_references_and_the_engines(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.answers[world.engine.name] = wrong_columns(4)
    compared: list[tuple[str, str]] = []
    look_again = tsss_edge.parity.look_again

    def seen(reference: Any, engine: Any, *rest: Any) -> Any:
        compared.append((reference.name, engine.name))
        return look_again(reference, engine, *rest)

    monkeypatch.setattr(tsss_edge.parity, "look_again", seen)
    world.check(report_dir=tmp_path / "report")
    assert compared == [("PyTorch", "engine")]
