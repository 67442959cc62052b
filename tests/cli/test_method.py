"""The method's commands as a user types them: render a set, train, label, add a category, print the table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trainkit import write_squares

from tsss_edge.data.voc import VocDataset, write_mask

Run = Callable[..., tuple[int, str, str]]


def config_file(path: Path) -> Path:
    path.write_text("size_hw = [64, 64]\nepochs = 3\nbatch = 4\nwarmup_epochs = 0.5\nema = 0.5\nthreads = 1\n")
    return path


def test_render_onto_layouts(run: Run, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for split, image_id in (("train", "a"), ("val", "b")):
        mask = np.zeros((60, 80), np.uint8)
        mask[10:40, 20:50] = 7
        write_mask(tmp_path / f"layouts/SegmentationClass/{image_id}.png", mask)
        (lists / f"{split}.txt").write_text(f"{image_id}\n")
    command = ("data", "render", "--layouts", tmp_path / "layouts", "--lists", lists, "--short-side", "48")
    code, out, _ = run(*command, "--out", tmp_path / "set", "--json", "-")
    assert code == 0
    assert json.loads(out)["splits"] == {"train": 1, "val": 1}
    assert VocDataset.open(tmp_path / "set").image("a").shape == (48, 64, 3)


def test_render_wants_layouts_or_source(run: Run, tmp_path: Path) -> None:
    code, _, err = run("data", "render", "--out", tmp_path / "set")
    assert code == 2
    assert "--layouts" in err
    code, _, _ = run("data", "render", "--source", "--layouts", tmp_path, "--out", tmp_path / "set")
    assert code == 2
    assert not (tmp_path / "set").exists()


def test_fetch_knows_two_names_and_fails_in_one_line(run: Run, tmp_path: Path) -> None:
    assert run("data", "fetch", "imagenet", "--out", tmp_path / "set")[0] == 2
    code, _, err = run("data", "fetch", "sbd", "--out", tmp_path / "set")  # needs a fetched VOC 2012 there
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_the_whole_method_from_a_source_set_then_one_more_category(run: Run, tmp_path: Path) -> None:
    data, source = write_squares(tmp_path / "data"), write_squares(tmp_path / "source", train=6, val=2)
    config = config_file(tmp_path / "c.toml")
    train = ("train", "all", "--data", data, "--source", source, "--config", config, "--mean-teacher", "--no-cutmix")
    code, out, err = run(*train, "--out", tmp_path / "run", "--json", "-")
    assert code == 0, err
    assert json.loads(out)["stage"] == "pnet"
    log = [json.loads(line) for line in (tmp_path / "run/lnet/log.jsonl").read_text().splitlines()]
    assert log[-1]["object_iou_strong"] is None  # no category is strong with --source
    label = ("label", "--data", data, "--split", "val", "--out", tmp_path / "lw", "--peak-floor", "0.4", "--lnet")
    code, out, err = run(*label, tmp_path / "run", "--add-above", "0.9")
    assert code == 0, err
    settings = json.loads((tmp_path / "lw/manifest.json").read_text())["settings"]
    assert (settings["peak_floor"], settings["add_above"]) == (0.4, 0.9)
    code, _, err = run(*label, tmp_path / "run/pnet", "--add-above", "0.9")
    assert code == 2 and "asks the classifier" in err
    code, _, err = run(*label, tmp_path / "run", "--sure-above", "0.5")
    assert code == 2 and "of labels by a P-Net" in err
    code, _, err = run(*label, tmp_path / "run/pnet", "--sure-above", "0.5")
    assert code == 0, err
    settings = json.loads((tmp_path / "lw/manifest.json").read_text())["settings"]
    assert (settings["peak_floor"], settings["sure_above"]) == (0.4, 0.5)

    wider = shutil.copytree(data, tmp_path / "wider")
    with (wider / "classes.txt").open("a") as file:
        file.write("violet\n")
    table = (wider / "image_labels.csv").read_text().splitlines()
    table[1] += " 4"  # the first picture shows violet, says its label
    (wider / "image_labels.csv").write_text("\n".join(table) + "\n")
    adapt = ("adapt", tmp_path / "run", "--data", wider, "--new-class", "violet", "--epochs", "1")
    code, out, err = run(*adapt, "--out", tmp_path / "run2", "--json", "-")
    assert code == 0, err
    report = json.loads(out)
    assert report["iou_new"] in (None, 0)  # no mask of "val" shows it
    assert report["images_with_new_class"] == 1


def test_reproduce_prints_the_table_and_refuses_unknown_rows(run: Run, tmp_path: Path) -> None:
    data, config = write_squares(tmp_path / "data"), config_file(tmp_path / "c.toml")
    command = ("reproduce", "--data", data, "--config", config, "--seeds", "0", "--out", tmp_path / "table")
    code, _, err = run(*command, "--rows", "50:everything")
    assert code == 2
    assert "50:full" in err
    assert not (tmp_path / "table").exists()
    code, out, err = run(*command, "--rows", "100:supervised")
    assert code == 0, err
    assert "supervised" in out
    assert json.loads((tmp_path / "table/table.json").read_text())["ratios"] == {}


def test_settings_as_options() -> None:
    from tsss_edge.cli.options import all_settings, parse_settings

    given = parse_settings(["jaccard=1", "optimizer=muon", "crop_hw=[64, 96]", "amp=false", "crop_hw=none"])
    assert given == {"jaccard": 1.0, "optimizer": "muon", "crop_hw": None, "amp": False}
    assert "loss_stride=4" in all_settings()
    for text, message in (
        ("jacard=1", "expected NAME=VALUE with one of"),
        ("lr", "expected NAME"),
        ("optimizer=sgd", "Invalid enum"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_settings([text])
