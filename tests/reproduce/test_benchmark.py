"""A benchmark file on the tiny set: every row and its denominator, what is missing, and that a score never trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from trainkit import write_squares
from typer.testing import CliRunner

from tsss_edge.artifacts import Checkpoint, CheckpointMeta
from tsss_edge.cli import app
from tsss_edge.config import TrainConfig, read_toml
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import ArtifactError
from tsss_edge.files import write_json
from tsss_edge.reproduce import pool, results
from tsss_edge.reproduce.benchmark import Benchmark, BenchmarkRun
from tsss_edge.reproduce.foldscore import NET_SCORE, fitted_score, net_score, object_score
from tsss_edge.reproduce.pool import Task
from tsss_edge.reproduce.results import collect, missing, read_benchmark, run_benchmark, seed_runs
from tsss_edge.reproduce.scores import RowScore, scored
from tsss_edge.scoring import Views
from tsss_edge.train.start import fresh_net

ROOT = Path(__file__).parents[2]
FILE = """
seeds = [0]
score = ["red", "blue"]
source_without = ["green"]

[folds]
A = ["red", "green"]

[epochs]
lnet = 1
lnet_source = 1
classifier = 1
pnet = 4
long = 5

[train]
size_hw = [64, 96]
batch = 4
warmup_epochs = 0.5
ema = 0.5
threads = 1
val_every = 100
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """squares.toml, its sets, and a finished run of it."""
    root = tmp_path_factory.mktemp("benchmark")
    (root / "squares.toml").write_text(FILE)
    data, source = write_squares(root / "data"), write_squares(root / "source")
    run_benchmark(read_benchmark(root / "squares.toml", data), data, source, root / "out")
    return root


def test_the_result_has_every_row_and_ratios_to_the_better_supervised_network(folder: Path) -> None:
    result = json.loads((folder / "out/benchmark.json").read_text())
    rows = {row["key"]: row for row in result["rows"]}
    assert list(rows) == [
        *("100:supervised", "100:supervised-long", "50:lnet", "0:lnet"),
        *("50:lnet-as-it-labels", "0:lnet-as-it-labels", "50:full", "0:full"),
        *("50:labels-only", "0:labels-only", "50:with-d", "50:with-judge"),
        *("50:noisy-labels", "0:noisy-labels", "0:strict-source"),
    ]
    assert result["missing"] == []
    better = max(rows[f"100:{name}"]["cells"][0]["miou7"] for name in ("supervised", "supervised-long"))
    assert result["miou7"] == better
    assert result["ratios"]["50"] == pytest.approx(rows["50:full"]["cells"][0]["miou7"] / better)
    trivial = {row["key"] for row in result["trivial"]}
    assert {"everything-is-object", "low-level-features", "filled-most-frequent"} <= trivial


def test_the_headline_is_the_mean_over_the_background_and_the_named_categories(folder: Path) -> None:
    result = json.loads((folder / "out/benchmark.json").read_text())
    cell = result["rows"][0]["cells"][0]
    by_name = cell["per_class"]
    assert cell["miou7"] == pytest.approx(sum(by_name[n] or 0 for n in ("background", "red", "blue")) / 3)


def test_an_l_net_s_foreground_is_measured_again_for_another_threshold(folder: Path) -> None:
    run, data = folder / "out/seed-0/A", folder / "data"
    scores = [fitted_score(run, data, ("red", "green"), above) for above in (-1.0, 2.0, -1.0)]
    assert scores[0] == scores[2] and [s.above for s in scores] == [-1.0, 2.0, -1.0]
    assert scores[0].weak and scores[0].weak > 0 and scores[1].weak == 0  # all is object, nothing is


def test_a_score_is_read_again_only_if_it_would_be_the_same(tmp_path: Path) -> None:
    """Another list of names, other strong categories or other masks of "val" are another score."""
    data, config = write_squares(tmp_path / "data", train=2, val=2), TrainConfig(size_hw=(64, 64))
    meta = CheckpointMeta(
        stage="supervised", arch="edge-s", classes=VocDataset.open(data).classes, preprocess=config.preprocess
    )
    net = Checkpoint.save(tmp_path / "run/best.pt", meta, fresh_net(config, num_classes=4).state_dict())
    assert [net_score(net, data, names).names for names in (["red"], ["red", "blue"])] == [("red",), ("red", "blue")]
    assert [object_score(net, data, strong).parted_by for strong in (("red",), ())] == [("red",), ()]

    def row(data: Path, strong: tuple[str, ...]) -> RowScore:
        dataset = VocDataset.open(data)
        return scored(net, Views(dataset, dataset.ids("val"), config.preprocess), strong)

    assert [row(data, strong).strong for strong in (("red",), ("red", "blue"))] == [("red",), ("red", "blue")]
    other = VocDataset.open(shutil.copytree(data, tmp_path / "other"))
    write_mask(other.mask_path(other.ids("val")[0]), np.ones((64, 64), np.uint8))
    first, second = (net_score(net, root, ["red", "blue"]) for root in (data, other.root))
    assert first.val_sha256 != second.val_sha256 and first.per_class != second.per_class
    assert row(other.root, ("red", "blue")).val_sha256 == second.val_sha256
    path = net.path.parent / NET_SCORE
    write_json(path, msgspec.structs.replace(second, headline=-1.0))
    assert net_score(net, other.root, ["red", "blue"]).headline == -1.0  # nothing has changed: it is read
    write_json(path, msgspec.structs.replace(second, headline=-1.0, names=(), val_sha256=""))  # of an older version
    assert net_score(net, other.root, ["red", "blue"]) == second


def test_a_report_trains_nothing_and_names_what_is_missing(folder: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark(folder / "squares.toml", folder / "data")
    result = collect(benchmark, folder / "data", folder / "source", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert result.ratios == {} and result.miou7 is None and result.rows == ()
    assert {"seed-0/A/lnet", "seed-0/supervised", "seed-0/A/pnet", "seed-0/0/labels"} <= set(result.missing)


def test_networks_that_train_side_by_side_share_the_cores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def spy(*_: object, **__: object) -> Iterator[Callable[[Sequence[Task]], None]]:
        yield tasks.extend

    tasks: list[Task] = []
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    monkeypatch.setattr(results, "workers", spy)
    monkeypatch.setattr(results, "collect", lambda benchmark, *_, **__: benchmark)
    benchmark = read_benchmark(folder / "squares.toml", folder / "data")
    benchmark = msgspec.structs.replace(benchmark, train=msgspec.structs.replace(benchmark.train, threads=0))
    told = run_benchmark(benchmark, folder / "data", None, tmp_path, jobs=2)
    assert {task.call.func.__self__.config.threads for task in tasks} == {4}
    assert told == benchmark  # the result holds the settings of the file


def test_seeds_are_the_files(folder: Path, tmp_path: Path) -> None:
    words = ["reproduce", "--data", folder / "data", "--config", folder / "squares.toml", "--out", tmp_path / "out"]
    found = CliRunner().invoke(app, [*map(str, words), "--seeds", "0"])
    assert found.exit_code == 2 and "leave --seeds out" in " ".join(found.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_rows_choose_the_work_and_what_is_missing(folder: Path, tmp_path: Path) -> None:
    benchmark, sets = read_benchmark(folder / "squares.toml", folder / "data"), (folder / "data", folder / "source")

    def left(*rows: str) -> set[str]:
        return {name.removeprefix("seed-0/") for name in missing(seed_runs(benchmark, *sets, tmp_path, rows))}

    networks = {"supervised", "supervised-long"}
    parts = ("lnet", "classifier", "labels", "relabels", "pnet")
    assert left("50:full") == {*networks, *(f"A/{part}" for part in parts)}
    assert left("50:labels-only") == {*networks, "A/lnet", "A/classifier", "A/labels", "A/labels-only"}
    assert left("0:lnet") == {*networks, "0/lnet"}
    done = run_benchmark(benchmark, *sets, folder / "out", rows=["50:full"])  # nothing is left to do
    assert [row.key for row in done.rows] == ["100:supervised", "100:supervised-long", "50:full"]
    assert done.missing == () and set(done.ratios) == {"50"}


def test_a_row_that_the_benchmark_cannot_make_is_refused(folder: Path) -> None:
    benchmark = read_benchmark(folder / "squares.toml", folder / "data")
    with pytest.raises(
        ValueError, match=r"unknown row '0:full'; this benchmark, on these sets, has 100:supervised, .*50:lnet, 50:full"
    ):
        seed_runs(benchmark, folder / "data", None, folder / "out", ["0:full"])


def test_strong_masks_alone_reach_the_fold_s_networks(folder: Path) -> None:
    """The row on noisy labels has a set of its own, whose masks are links to the same ones."""
    assert (folder / "out/seed-0/noisy-labels/data/SegmentationClass").is_symlink()
    noisy = VocDataset.open(folder / "out/seed-0/noisy-labels/data")
    plain = VocDataset.open(folder / "data")
    train = plain.ids("train")
    assert [i for i in train if noisy.image_labels(i) != plain.image_labels(i)]
    hidden = Supervision(noisy, ("red", "green"))
    assert not any((hidden.pixel_mask(i) == 3).any() for i in train)  # blue is weak


def test_the_command_reports_and_refuses_options_that_the_file_decides(folder: Path) -> None:
    call = ["reproduce", "--data", str(folder / "data"), "--config", str(folder / "squares.toml")]
    out = ["--source", str(folder / "source"), "--out", str(folder / "out")]
    done = CliRunner().invoke(app, [*call, *out, "--report", "--rows", "0:lnet"])
    assert done.exit_code == 0 and "not yet run: nothing" in done.stdout
    assert "0:lnet" in done.stdout and "50:full" not in done.stdout
    unknown = CliRunner().invoke(app, [*call, *out, "--rows", "51:full"])
    assert unknown.exit_code == 2 and "unknown row '51:full'" in unknown.output.replace("\n", " ")
    refused = CliRunner().invoke(app, [*call, *out, "--strong", "red"])
    assert refused.exit_code == 2 and "leave --strong out" in refused.output.replace("\n", " ")


def test_unknown_categories_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(FILE.replace('"blue"]', '"mauve"]'))
    with pytest.raises(ArtifactError, match="unknown categories mauve"):
        read_benchmark(tmp_path / "bad.toml", folder / "data")


@pytest.mark.parametrize("name", ["photos", "photos-stage", "photos-quick"])
def test_the_benchmarks_of_the_repository(name: str, tmp_path: Path) -> None:
    """Folds part the twenty categories, and the rows that the file cannot tell apart are left out."""
    benchmark = read_toml(ROOT / "benchmarks" / f"{name}.toml", Benchmark)
    a, b = (set(names) for names in benchmark.folds.values())
    assert len(a) == len(b) == 10 and not a & b and set(benchmark.score) <= a | b
    rows = BenchmarkRun(benchmark, tmp_path, tmp_path, tmp_path, 0).variants(first=True)
    assert ("labels-only" in {row.name for row in rows}) == (benchmark.relabel or benchmark.switches.cutmix)
    assert {"with-d", "with-judge"} <= {row.name for row in rows}


def test_the_inner_split_holds_no_category_that_is_weak_outside(tmp_path: Path) -> None:
    inner, outer = (read_toml(ROOT / f"benchmarks/{n}.toml", Benchmark) for n in ("photos-inner", "photos"))
    assert set(inner.only) == set(outer.folds["A"])
    assert all(set(strong) < set(inner.only) for strong in inner.folds.values())
    assert set(inner.score) <= set(inner.only)


def test_the_garments_are_halved_by_even_and_odd_id() -> None:
    benchmark = read_toml(ROOT / "benchmarks/ccp.toml", Benchmark)
    assert benchmark.folds["odd"] == benchmark.score[::2] and benchmark.folds["even"] == benchmark.score[1::2]


def test_the_painted_benchmark_names_all_categories(tmp_path: Path) -> None:
    benchmark = read_toml(ROOT / "benchmarks/rendered-b.toml", Benchmark)
    assert len(set(benchmark.score)) == 20 and set(benchmark.folds["first"]) <= set(benchmark.score)


@pytest.mark.parametrize("name", ["0", "supervised", "noisy-labels", "a/b", ".."])
def test_a_fold_whose_folder_is_another_s_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.toml").write_text(FILE.replace("A = [", f'"{name}" = ['))
    with pytest.raises(ArtifactError, match=f"a fold is named '{name}'"):
        read_benchmark(tmp_path / "bad.toml", folder / "data")


def test_a_size_that_no_network_takes_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(FILE.replace("[64, 96]", "[100, 100]"))
    with pytest.raises(ArtifactError, match="multiples of 32"):
        read_benchmark(tmp_path / "bad.toml", folder / "data")
