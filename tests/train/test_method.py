"""The method end to end on the tiny set: what a loss may see, what labels may hold, what stages refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import torch
from trainkit import STRONG, same_weights, write_squares

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Preprocess, Stage
from tsss_edge.config import TrainConfig
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.files import read_json
from tsss_edge.label.annotate import Evidence, LabelConfig, Relabeller, annotate
from tsss_edge.label.edges import EdgeFit, sharpened, to_frame
from tsss_edge.label.write import LabelReport, write_labels
from tsss_edge.models import load_classifier, load_model
from tsss_edge.models.discriminator import Discriminator
from tsss_edge.scoring import Views, class_matrix
from tsss_edge.train.all import draft_epochs, last_pnet, train_all, with_epochs
from tsss_edge.train.lnet import AnyHue, train_lnet
from tsss_edge.train.loader import Batch
from tsss_edge.train.pnet import Switches, starting_net, train_pnet
from tsss_edge.train.runfolder import epochs_done, to_toml
from tsss_edge.train.start import fresh_net, require_unseen


@pytest.fixture(scope="module")
def finished(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the whole method on the clean set."""
    out = tmp_path_factory.mktemp("method") / "run"
    train_all(short(), squares, out, strong=STRONG)
    return out


def short() -> TrainConfig:
    return TrainConfig(
        size_hw=(64, 64), epochs=4, batch=4, warmup_epochs=0.5, ema=0.5, scale_range=(0.9, 1.1), threads=1
    )


def test_every_stage_leaves_a_run(finished: Path) -> None:
    for folder, stage in {"lnet": "lnet", "classifier": "classifier", "draft": "pnet", "pnet": "pnet"}.items():
        assert Checkpoint.load(finished / folder).meta.stage == stage
    result = Checkpoint.load(finished)
    assert result.meta.stage == "pnet"
    assert result.meta.strong == STRONG
    assert set(result.meta.metrics) >= {"miou", "pixel_accuracy"}
    net = load_model(result)
    assert net.class_head is not None
    assert net.object_head is not None
    assert (finished / "labels/contact_sheet.png").is_file()


@pytest.mark.parametrize("folder", ["labels", "relabels"])
def test_labels_hold_only_what_the_image_level_label_names(finished: Path, squares: Path, folder: str) -> None:
    dataset = VocDataset.open(squares)
    supervision = Supervision(dataset, STRONG)
    weak = supervision.weak_ids("train")
    assert sorted(p.stem for p in (finished / folder / "SegmentationClass").iterdir()) == sorted(weak)
    for image_id in weak:
        mask = read_mask(finished / folder / f"SegmentationClass/{image_id}.png")
        assert set(np.unique(mask).tolist()) <= {0, 255, *supervision.image_labels(image_id)}
        known = supervision.pixel_mask(image_id)
        assert (mask[known != 255] == known[known != 255]).all()
    report = read_json(finished / folder / "manifest.json", LabelReport)
    assert report.images == len(weak)
    networks = {"labels": {"lnet": "lnet", "classifier": "classifier"}, "relabels": {"pnet": "draft"}}[folder]
    assert report.sha256 == {stage: Checkpoint.load(finished / run).sha256 for stage, run in networks.items()}


def poison(root: Path) -> None:
    """Overwrite every pixel label of a weak category, in every split, with noise of weak ids, 0 and 255.

    Pixels of strong categories stay: they are given. Where an image has no other pixel to hide, all of it is noise.
    """
    dataset = VocDataset.open(root)
    strong = dataset.classes.ids(STRONG)
    rng = np.random.default_rng(1)
    supervision = Supervision(dataset, STRONG)
    for split in ("train", "val"):
        for image_id in supervision.weak_ids(split):
            mask = dataset.mask(image_id).copy()
            hidden = ~np.isin(mask, strong)
            mask[hidden] = rng.choice(np.array([0, 3, 255], np.uint8), int(hidden.sum()))
            write_mask(dataset.mask_path(image_id), mask)


def test_poisoned_weak_masks_give_bit_identical_networks(finished: Path, squares: Path, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "data")
    poison(tmp_path / "data")
    assert VocDataset.open(squares).split_hash("train") != VocDataset.open(tmp_path / "data").split_hash("train")
    train_all(short(), tmp_path / "data", tmp_path / "run", strong=STRONG)
    for stage in ("lnet", "classifier", "draft", "pnet"):
        assert same_weights(finished / stage / "best.pt", tmp_path / "run" / stage / "best.pt"), stage
    masks = sorted(finished.glob("*labels/SegmentationClass/*.png"))
    assert {mask.parts[-3] for mask in masks} == {"labels", "relabels"}
    for mask in masks:
        assert mask.read_bytes() == (tmp_path / "run" / mask.relative_to(finished)).read_bytes(), mask.name


def test_resume_in_the_middle_of_the_method_equals_one_go(finished: Path, squares: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for stage in ("pnet", "relabels"):
        shutil.rmtree(tmp_path / "run" / stage)
    (tmp_path / "run/best.pt").unlink()
    train_all(short(), squares, tmp_path / "run", strong=STRONG, resume=True)
    assert same_weights(finished / "best.pt", tmp_path / "run/best.pt")


def test_more_epochs_are_p_nets_alone_once_its_labels_are_made(finished: Path, squares: Path, tmp_path: Path) -> None:
    """Labels that are kept stay those of the networks beside them; these are compared with the settings all the same."""
    run = shutil.copytree(finished, tmp_path / "run")
    train_all(msgspec.structs.replace(short(), epochs=8), squares, run, strong=STRONG, resume=True)
    epochs = {stage: epochs_done(run / stage) for stage in ("lnet", "classifier", "draft", "pnet")}
    assert epochs == {"lnet": 2, "classifier": 1, "draft": 1, "pnet": 6}
    for folder, stages in {"labels": ("lnet", "classifier"), "relabels": ("draft",)}.items():
        made_by = read_json(run / folder / "manifest.json", LabelReport).sha256
        assert list(made_by.values()) == [Checkpoint.load(run / stage).sha256 for stage in stages]
    with pytest.raises(ArtifactError, match=r"lnet.*started with other settings or data \(lr\)"):
        train_all(msgspec.structs.replace(short(), lr=1.0), squares, run, strong=STRONG, resume=True)


def test_labels_of_other_settings_or_networks_are_not_kept(finished: Path, squares: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    with pytest.raises(ArtifactError, match="labels of other networks or settings"):
        train_all(short(), squares, run, strong=STRONG, labels=LabelConfig(peak_floor=0.4), resume=True)
    meta, state = Checkpoint.load(run / "classifier").meta, Checkpoint.load(run / "classifier").state()
    Checkpoint.save(run / "classifier/best.pt", msgspec.structs.replace(meta, metrics={"x": 1.0}), state)
    with pytest.raises(ArtifactError, match="labels of other networks or settings"):
        train_all(short(), squares, run, strong=STRONG, resume=True)


def test_with_the_discriminator_the_result_differs(finished: Path, squares: Path, tmp_path: Path) -> None:
    options = {"lnet": finished / "draft", "labels": finished / "relabels", "strong": STRONG}
    left = with_epochs(short(), short().epochs - draft_epochs(short()))
    train_pnet(left, squares, tmp_path / "without", **options)
    assert same_weights(finished / "pnet/best.pt", tmp_path / "without/best.pt")
    assert "fool" not in (tmp_path / "without/log.jsonl").read_text()
    train_pnet(left, squares, tmp_path / "with", switches=Switches(adversarial=True), **options)
    assert not same_weights(finished / "pnet/best.pt", tmp_path / "with/best.pt")
    assert "fool" in (tmp_path / "with/log.jsonl").read_text()


def test_label_never_trains_and_says_who_does(finished: Path, squares: Path, tmp_path: Path) -> None:
    lnet = shutil.copytree(finished / "lnet", tmp_path / "lnet")
    with pytest.raises(ArtifactError, match="no classifier; train one with `tsss-edge train lnet --resume"):
        write_labels(lnet, squares, tmp_path / "labels")
    assert not (tmp_path / "labels").exists()
    assert not (lnet / "classifier").exists()


def test_train_lnet_trains_the_classifier_that_label_needs(
    run: Callable[..., tuple[int, str, str]], squares: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(to_toml(msgspec.structs.replace(short(), epochs=1)))
    options = ("--data", squares, "--strong", ",".join(STRONG), "--config", settings, "--out", tmp_path / "lnet")
    assert run("train", "lnet", *options)[0] == 0
    shutil.rmtree(tmp_path / "lnet/classifier")  # as after a kill between the two
    assert run("train", "lnet", *options, "--resume")[0] == 0
    assert run("label", "--lnet", tmp_path / "lnet", "--data", squares, "--out", tmp_path / "labels")[0] == 0
    assert (tmp_path / "labels/manifest.json").is_file()


def test_pnet_refuses_labels_of_another_set(finished: Path, squares: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "labels", tmp_path / "labels")
    mask = sorted((tmp_path / "labels/SegmentationClass").iterdir())[0]
    options = {"lnet": finished, "labels": tmp_path / "labels", "strong": STRONG}
    write_mask(mask, np.full((64, 64), 200, np.uint8))
    with pytest.raises(DataError, match=mask.stem):
        train_pnet(short(), squares, tmp_path / "p", **options)
    mask.unlink()
    with pytest.raises(DataError, match=f"no label for weak image {mask.stem}"):
        train_pnet(short(), squares, tmp_path / "p", **options)


def test_pnet_takes_what_the_classifier_added_to_image_level_labels(
    finished: Path, squares: Path, tmp_path: Path
) -> None:
    """Here it is sure of everything. Labels that were not made so may hold no more than their pictures' labels do."""
    labels, supervision = tmp_path / "labels", Supervision(VocDataset.open(squares), STRONG)
    report = write_labels(finished, squares, labels, config=LabelConfig(add_above=1e-9, scales=(1.0,)))
    masks = {i: set(np.unique(read_mask(labels / f"SegmentationClass/{i}.png"))) for i in supervision.weak_ids("train")}
    assert any(found - {0, 255} > supervision.image_labels(i) for i, found in masks.items())
    options = {"lnet": finished, "labels": labels, "strong": STRONG}
    settings = msgspec.structs.replace(short(), epochs=1)
    assert train_pnet(settings, squares, tmp_path / "p", **options).meta.stage == "pnet"
    plain = msgspec.structs.replace(report, settings=LabelConfig())
    (labels / "manifest.json").write_bytes(msgspec.json.encode(plain))
    with pytest.raises(DataError, match="label this set again"):
        train_pnet(settings, squares, tmp_path / "q", **options)


def test_pnet_refuses_a_start_or_labels_that_know_more_masks(finished: Path, squares: Path, tmp_path: Path) -> None:
    """Trained with masks of red and green; a P-Net with green weak must not come of that."""
    with pytest.raises(
        ArtifactError, match="has seen masks of green, which would be weak here; give --strong red,green"
    ):
        train_pnet(short(), squares, tmp_path, lnet=finished, labels=finished / "labels", strong=("red",))
    blind = shutil.copytree(finished / "lnet", tmp_path / "blind")
    start = Checkpoint.load(blind)
    Checkpoint.save(start.path, msgspec.structs.replace(start.meta, strong=("red",)), start.state())
    with pytest.raises(ArtifactError, match=r"labels: has seen masks of green"):
        train_pnet(short(), squares, tmp_path / "p", lnet=blind, labels=finished / "labels", strong=("red",))


@pytest.mark.parametrize("setting", ["init_from", "encoder_weights"])
@pytest.mark.parametrize("stage, strong", [("supervised", ()), ("pnet", ("green", "blue")), ("distilled", ("blue",))])
def test_l_net_refuses_weights_that_have_seen_masks_of_weak_categories(
    squares: Path, tmp_path: Path, setting: str, stage: Stage, strong: tuple[str, ...]
) -> None:
    net, classes = fresh_net(short(), num_classes=4), VocDataset.open(squares).classes
    meta = CheckpointMeta(stage=stage, arch="edge-s", classes=classes, preprocess=short().preprocess, strong=strong)
    path = Checkpoint.save(tmp_path / "best.pt", meta, net.state_dict()).path
    config = msgspec.structs.replace(short(), **{setting: str(path)})
    with pytest.raises(ArtifactError, match=r"best.pt: has seen masks of blue, which are weak here"):
        train_lnet(config, squares, tmp_path / "run", strong=STRONG)
    assert not (tmp_path / "run").exists()
    require_unseen(config, VocDataset.open(squares), ("red", "green", "blue"))


def test_pictures_of_val_that_have_a_label_alone_are_not_measured(
    finished: Path, squares: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    dataset = VocDataset.open(data)
    weak = Supervision(dataset, STRONG).weak_ids("val")
    for image_id in weak:
        dataset.mask_path(image_id).unlink()
    options = {"lnet": finished, "labels": finished / "labels", "strong": STRONG}
    made = train_pnet(with_epochs(short(), 1), data, tmp_path / "pnet", **options)
    left = Views(dataset, tuple(i for i in dataset.ids("val") if i not in weak), made.meta.preprocess)
    assert made.meta.metrics["miou"] == pytest.approx(class_matrix(load_model(made), left).miou)
    shutil.rmtree(data / "SegmentationClass")
    with pytest.raises(DataError, match="none of the 6 pictures of val has a mask"):
        train_all(short(), data, tmp_path / "run", strong=STRONG)
    assert not (tmp_path / "run").exists()


def test_labels_never_go_into_the_set_they_are_made_of(finished: Path, squares: Path, tmp_path: Path) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    with pytest.raises(ArtifactError, match="would overwrite the masks"):
        write_labels(finished, data, tmp_path / "x/../data")
    assert {p: p.read_bytes() for p in data.rglob("*") if p.is_file()} == before


def test_labels_that_are_cut_off_have_no_manifest(
    finished: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = shutil.copytree(finished / "labels", tmp_path / "labels")
    monkeypatch.setattr("tsss_edge.label.write.write_mask", lambda path, mask: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_labels(finished, squares, labels)
    assert not (labels / "manifest.json").exists()


def test_a_discriminator_is_on_its_device_before_its_optimizer_is_restored(
    finished: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam puts restored moments beside the parameters; D moved afterwards would leave them behind, on the CPU."""
    run, options = tmp_path / "pnet", {"strong": STRONG, "switches": Switches(adversarial=True)}
    last_pnet(short(), squares, finished, run, **options)
    calls: list[str] = []
    to, load = Discriminator.to, torch.optim.Adam.load_state_dict
    monkeypatch.setattr(Discriminator, "to", lambda self, device: (calls.append("to"), to(self, device))[1])
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, s: (calls.append("load"), load(self, s))[1])
    last_pnet(short(), squares, finished, run, **options, resume=True)
    assert calls == ["to", "load", "load"]  # of S's optimizer and of D's


def test_every_stage_sees_views_of_the_size_that_was_asked_for(
    finished: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    to = Batch.to

    def spy(batch: Batch, device: torch.device) -> Batch:
        sizes.append(tuple(batch.images.shape[1:3]))
        return to(batch, device)

    monkeypatch.setattr(Batch, "to", spy)
    config = msgspec.structs.replace(short(), epochs=2, crop_hw=(32, 64), jaccard=1.0)
    train_all(config, squares, tmp_path, strong=STRONG)
    assert set(sizes) == {(32, 64)}
    line = json.loads((tmp_path / "pnet/log.jsonl").read_text().splitlines()[-1])
    assert line["jaccard"] > 0


def test_pnet_refuses_another_architecture(finished: Path, squares: Path, tmp_path: Path) -> None:
    config = msgspec.structs.replace(short(), arch="edge-m")
    with pytest.raises(ArtifactError, match="edge-s, this run is edge-m"):
        train_pnet(config, squares, tmp_path, lnet=finished, labels=finished / "labels", strong=STRONG)


def test_p_net_starts_from_the_classifier_of_the_run(finished: Path, squares: Path, tmp_path: Path) -> None:
    dataset = VocDataset.open(squares)
    classifier = load_classifier(Checkpoint.load(finished / "classifier")).net.state_dict()
    start = starting_net(short(), dataset, finished).state_dict()
    assert all(torch.equal(start[name], classifier[name]) for name in start)
    shutil.copytree(finished / "lnet", tmp_path / "lnet")  # one that has no classifier
    start = starting_net(short(), dataset, tmp_path / "lnet").state_dict()
    lnet = Checkpoint.load(finished / "lnet").state()
    assert all(torch.equal(start[name], lnet[name]) for name in lnet)


def test_p_net_goes_on_from_a_draft_of_the_same_set(finished: Path, squares: Path, tmp_path: Path) -> None:
    start = starting_net(short(), VocDataset.open(squares), finished / "draft").state_dict()
    draft = Checkpoint.load(finished / "draft").state()
    assert all(torch.equal(start[name], draft[name]) for name in start)
    other = shutil.copytree(squares, tmp_path / "other")
    (other / "classes.txt").write_text("background\nred\ngreen\nviolet\n")
    with pytest.raises(ArtifactError, match="other classes"):
        starting_net(short(), VocDataset.open(other), finished / "draft")


def test_without_relabel_there_is_no_draft(squares: Path, tmp_path: Path) -> None:
    quick = msgspec.structs.replace(short(), epochs=1)
    train_all(quick, squares, tmp_path / "run", strong=STRONG, relabel=False)
    assert not (tmp_path / "run/draft").exists()
    train_all(quick, squares, tmp_path / "all-strong", strong=("red", "green", "blue"))  # nobody to label again
    assert not (tmp_path / "all-strong/draft").exists()


def test_second_labels_are_sure_answers_within_the_image_level_label(
    finished: Path, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class 3 on the left, background in the middle, undecided on the right; class 1 is loud but not in the label."""
    supervision = Supervision(VocDataset.open(squares), STRONG)
    image_id = next(i for i in supervision.weak_ids("train") if supervision.image_labels(i) == {3})
    logits = torch.zeros(1, 4, 12, 12)
    logits[0, 3, :, :4] = 5
    logits[0, 0, :, 4:8] = 5
    logits[0, 1] = 9
    labeller = Relabeller(Checkpoint.load(finished / "pnet"))
    monkeypatch.setattr(labeller, "_see", lambda _: logits)
    views = Views(supervision.dataset, (image_id,), Preprocess(size_hw=(64, 64)))
    ((_, labels),) = labeller.labels(views, supervision, LabelConfig(edges=EdgeFit(radius=0)))
    assert (labels[:, :18] == 3).all()
    assert (labels[:, 26:40] == 0).all()
    assert (labels[:, 48:] == 255).all()


def test_any_hue_moves_channels_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (6, 5, 3), np.uint8), rng.integers(0, 3, (6, 5), np.uint8)
    seen = set()
    for _ in range(60):
        view, labels = AnyHue(lambda image, mask, _: (image, mask))(image, mask, rng)
        assert (labels == mask).all()
        seen.add(tuple(next(c for c in range(3) if (view[..., k] == image[..., c]).all()) for k in range(3)))
    assert len(seen) == 6


def test_lnet_wants_a_background_and_strong_images(squares: Path, tmp_path: Path) -> None:
    without = write_squares(tmp_path / "data", background=False)
    with pytest.raises(DataError, match="no background class"):
        train_lnet(short(), without, tmp_path / "run", strong=("red",))
    with pytest.raises(DataError, match="--source"):
        train_lnet(short(), squares, tmp_path / "run", strong=())


def test_lnet_learns_objects_from_a_source_set(squares: Path, tmp_path: Path) -> None:
    source = write_squares(tmp_path / "source", train=4)
    checkpoint = train_lnet(short(), squares, tmp_path / "run", strong=(), source=source)
    assert checkpoint.meta.classes == VocDataset.open(squares).classes
    line = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert line["object_iou_strong"] is None  # no strong category, nothing to measure
    assert line["object_iou_weak"] is not None


def test_annotation_of_hand_made_evidence(squares: Path) -> None:
    """Left half object, right half background; class 3 on top, class 1 below; only what the label names may win."""
    dataset = VocDataset.open(squares)
    supervision = Supervision(dataset, STRONG)
    image_id = next(i for i in supervision.weak_ids("train") if supervision.image_labels(i) == {3})
    objectness = np.zeros((8, 8), np.float32)
    objectness[:, :4] = 1
    maps = np.zeros((4, 8, 8), np.float32)
    maps[1] = 9  # loud, but not in the image-level label
    rng = np.random.default_rng(0)
    evidence = Evidence(
        objectness=objectness,
        maps=maps,
        features=rng.random((4, 8, 8), np.float32),
        colors=np.zeros((3, 8, 8), np.float32),
    )
    views = Views(dataset, (image_id,), Preprocess(size_hw=(64, 64)))
    known = supervision.pixel_mask(image_id)
    lw = annotate(evidence, views, image_id, supervision, LabelConfig(edges=EdgeFit(radius=0)))
    assert (lw[:, :28][known[:, :28] == 255] == 3).all()
    assert (lw[:, 36:][known[:, 36:] == 255] == 0).all()
    assert set(np.unique(lw)) == {0, 3, 255}  # 255 on the border between


def test_to_frame_puts_the_grid_where_the_picture_was() -> None:
    grid = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    preprocess = Preprocess(size_hw=(32, 32), fit="letterbox")
    tall = to_frame(grid, preprocess, (64, 32))  # 32x16 in the middle of 32x32
    assert tall.shape == (1, 64, 32)
    wide = cv2.resize(grid[0], (32, 32))
    np.testing.assert_allclose(tall[0], cv2.resize(wide[:, 8:24], (32, 64)), atol=1e-5)


def test_crop_leaves_the_unseen_part_undecided() -> None:
    preprocess = Preprocess(size_hw=(32, 32), fit="crop")
    wide = to_frame(np.ones((1, 4, 4), np.float32), preprocess, (32, 64))
    assert (wide[0, :, 16:48] == 1).all()
    assert (wide[0, :, :16] == 0.5).all()


def test_fitting_to_edges_leaves_the_unseen_part_undecided_too(squares: Path) -> None:
    dataset = VocDataset.open(squares)
    image_id = dataset.ids("train")[0]
    preprocess = Preprocess(size_hw=(32, 64), fit="crop")  # of 64x64, the middle rows
    wide = sharpened(np.ones((1, 4, 8), np.float32), dataset.image(image_id), preprocess, EdgeFit(radius=0.125))[0]
    np.testing.assert_allclose(wide[16:48], 1, atol=1e-3)
    assert (wide[:16] == 0.5).all()
    assert (wide[48:] == 0.5).all()
