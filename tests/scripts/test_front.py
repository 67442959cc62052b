"""The networks of the front study are those of their papers and become engines as any foreign one; the page says who is above."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from front.blocks import pool_regions
from front.networks import OTHERS, ClassLogits, register, segmentation_net
from front.page import beaten_by, cell, draw, page
from front.study import UNSEEN, Row, Scores, Study, run_folder, settings, split_by_sequence, trained, trivial
from front.variants import VARIANTS
from msgspec.structs import replace

import tsss_edge
from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, OnnxModel, Preprocess
from tsss_edge.backends import open_backend
from tsss_edge.bench.conditions import examine_machine
from tsss_edge.data.voc import write_mask
from tsss_edge.models import ARCHITECTURES, build_model

# Millions of parameters, as the papers or their code give them: DDRNet table 4, PIDNet table 6, PaddleSeg's model page, ours for
# BiSeNetV2 without auxiliary heads, Fast-SCNN table 5.
PUBLISHED = {"ddrnet-23-slim": 5.7, "pidnet-s": 7.6, "pp-liteseg-t": 8.04, "bisenetv2": 3.34, "fast-scnn": 1.11}


@pytest.mark.parametrize("name", OTHERS)
def test_sizes_are_the_published_ones_and_the_output_is_at_stride_8(name: str) -> None:
    net = segmentation_net(OTHERS[name], num_classes=19, objectness=False).eval()
    count = sum(p.numel() for p in net.parameters()) / 1e6
    assert count == pytest.approx(PUBLISHED[name], rel=0.03)
    with torch.no_grad():
        logits = net(torch.zeros(1, 3, 96, 160)).logits
    assert logits is not None and logits.shape == (1, 19, 12, 20)


@pytest.mark.parametrize(("name", "side"), [("edge-s-s2d2", 2), ("edge-s-s2d4", 4)])
def test_a_stem_of_blocks_is_space_to_depth_and_3x3_and_leaves_the_rest_of_edge_s_alone(name: str, side: int) -> None:
    net, plain = VARIANTS[name](num_classes=3).eval(), build_model("edge-s", num_classes=3)
    stem = next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d))
    x = torch.rand(1, 3, 32, 64)
    blocks = F.pixel_unshuffle(stem.weight, side)  # the taps of a block become channels as its pixels do
    assert torch.allclose(stem(x), F.conv2d(F.pixel_unshuffle(x, side), blocks, padding=1), atol=1e-5)
    shapes = {n: t.shape for n, t in net.state_dict().items() if not n.startswith(("encoder.stem", "encoder.stages.0"))}
    assert shapes == {
        n: t.shape for n, t in plain.state_dict().items() if not n.startswith(("encoder.stem", "encoder.stages.0"))
    }
    with torch.no_grad():
        logits = net(torch.zeros(1, 3, 96, 160)).logits
    assert logits is not None and logits.shape == (1, 3, 12, 20)


@pytest.mark.filterwarnings("ignore")  # of torch's own exporter
@pytest.mark.parametrize("name", ["pidnet-s", "pp-liteseg-t", "edge-s-s2d4", "edge-s-pyramid"])
def test_a_network_becomes_an_artifact_that_answers_alike(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make = VARIANTS[name] if name in VARIANTS else partial(segmentation_net, OTHERS[name])
    net = make(num_classes=3, objectness=False).eval()
    out, classes = tmp_path / "net.onnx", Classes(names=("a", "b", "c"), background=False)
    tsss_edge.import_model(ClassLogits(net), out, classes=classes, example=(64, 96))
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    with open_backend(OnnxModel.load(out).path, threads=1) as backend, torch.no_grad():
        found = backend.infer(picture)["logits"]
        want = net(torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255).logits
    assert want is not None and np.abs(found - want.numpy()).max() < 1e-3 * float(want.abs().max())


def test_they_are_trained_under_their_names_with_one_recipe() -> None:
    try:
        register()
        assert {*OTHERS, *VARIANTS} <= set(ARCHITECTURES)
    finally:
        for name in (*OTHERS, *VARIANTS):
            ARCHITECTURES.pop(name, None)
    plain = settings("pidnet-s", 5)
    assert (plain.freeze, plain.encoder_weights, plain.arch) == (0, "", "pidnet-s")
    assert settings("pidnet-s", 5, 3) == replace(plain, seed=3)
    assert (settings("lite0", 5).freeze, settings("lite0", 5).encoder_weights) == (16, "imagenet")


def test_regions_of_equal_size() -> None:
    x = torch.arange(7.0).reshape(1, 1, 1, 7)
    assert pool_regions(x, 2).flatten().tolist() == [1.5, 4.5]  # of four each, the middle one in both
    assert pool_regions(x, 1).flatten().tolist() == [3.0]


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Two pictures of sequence A and one of B to train on, one to validate: of 4 pixels 3, 2, 1 and 4 show the first class."""
    root = tmp_path / "street"
    lists = root / "ImageSets/Segmentation"
    for folder in (root / "JPEGImages", root / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    (root / "classes.txt").write_text("road\ntree\n")
    for name, ones in (("A1", 3), ("A2", 2), ("B1", 1), ("A3", 4)):
        cv2.imwrite(str(root / f"JPEGImages/{name}.png"), np.zeros((1, 4, 3), np.uint8))
        write_mask(root / f"SegmentationClass/{name}.png", np.array([[0] * ones + [1] * (4 - ones)], np.uint8))
    (lists / "train.txt").write_text("A1\nA2\nB1\n")
    (lists / "val.txt").write_text("A3\n")
    return root


def test_a_sequence_is_left_out_and_is_a_split_of_its_own(street: Path, tmp_path: Path) -> None:
    for _ in range(2):  # two trainings side by side make it both
        out = split_by_sequence(street, tmp_path / "split", "B")
    lists = {p.stem: p.read_text().split() for p in (out / "ImageSets/Segmentation").iterdir()}
    assert lists == {"train": ["A1", "A2"], "val": ["A3"], UNSEEN: ["B1"]}
    assert trivial(out) == (pytest.approx(100 / 4 / 2), 100.0)  # road everywhere: 1 of 4 pixels right, of two classes
    assert all(type(share) is float for share in trivial(out)), "NumPy's own are no JSON"
    for nothing in ("C", ""):
        with pytest.raises(SystemExit, match="no or all pictures"):
            split_by_sequence(street, tmp_path / "other", nothing)


def test_a_page_counts_the_seeds_that_were_trained(tmp_path: Path) -> None:
    one = run_folder(tmp_path, "edge-s", 1)
    one.mkdir(parents=True)
    described = CheckpointMeta(
        stage="supervised",
        arch="edge-s",
        classes=Classes(names=("a", "b"), background=False),
        preprocess=Preprocess(size_hw=(32, 32)),
        training={"epochs": 2},
    )
    Checkpoint.save(one / "best.pt", described, {})
    (one / "log.jsonl").write_text('{"epoch":1}\n')
    with pytest.raises(SystemExit, match=r"seed-0/edge-s: no finished training of edge-s"):
        trained(tmp_path, "edge-s", [0, 1])
    (one / "log.jsonl").write_text('{"epoch":1}\n{"epoch":2,"miou":3.0}\n')
    assert trained(tmp_path, "edge-s", [0, 1]) == [one]


def made_up(name: str, int8_ms: float, *unseen: float) -> Row:
    return Row(name, 1_500_000, 18, tuple(Scores(u, u, u, u) for u in unseen), 2 * int8_ms, int8_ms, "built")


def test_the_page_says_who_is_above_whom_beyond_a_point() -> None:
    rows = (made_up("edge-s", 4.0, 50.0), made_up("fast-scnn", 3.0, 51.5), made_up("pidnet-s", 9.0, 60.0))
    assert [beaten_by(r, rows) for r in rows] == [["fast-scnn"], [], []]
    near = (rows[0], made_up("fast-scnn", 3.0, 50.9))
    assert beaten_by(near[0], near) == [], "less than the spread of seeds is a tie"
    apart = (rows[0], made_up("fast-scnn", 3.0, 49.5, 53.5))
    assert beaten_by(apart[0], apart) == [], "its mean is above by 1.5, its seeds are 2 to each side"
    assert cell(apart[1], "unseen") == "51.50 ± 2.00" and cell(rows[0], "unseen") == "50.00"
    machine = examine_machine(threads=1, mhz_before=None, load_before=None)
    study = Study(rows, "0001TP", (3.0, 4.0), machine, "2026-11-29", "tsss-edge 0", "python -m front page")
    text = page(study, "front.png")
    assert "Of ours nobody is above: none of ours." in text and "| most frequent class |" in text
    assert "1.50 M" in text and text.count("| fast-scnn |") == 2
    (axes,) = draw(study).axes
    assert sorted(t.get_text() for t in axes.texts) == ["edge-s", "fast-scnn", "pidnet-s"]
