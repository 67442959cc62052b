"""`segment --ray`: the same masks as on one machine (on a stand-in for Ray; on Ray itself where it is installed)."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_onnx

from tsss_edge.config import load_target
from tsss_edge.deploy import ray_cluster, segment_ray
from tsss_edge.deploy.remote_files import file_system, plan_anywhere
from tsss_edge.deploy.segment_ray import segment_on_ray
from tsss_edge.errors import ArtifactError, DataError, UnavailableError
from tsss_edge.export.build import build_engine
from tsss_edge.segment import segment_files


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    for i in range(5):
        picture = np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"photos/{i}.png")
    (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff")
    return build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("cpu"), tmp_path / "t", precision="fp32").path


class LocalRay:
    """Ray's part that we use, in this process: batches of rows to one instance of the class."""

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.shut = 0
        self.data = SimpleNamespace(
            from_items=self.from_items,
            ActorPoolStrategy=lambda min_size, max_size: (min_size, max_size),
            DataContext=SimpleNamespace(get_current=lambda: SimpleNamespace()),
        )

    def init(self, **options: Any) -> None:
        self.addresses.append(options.get("address"))

    def shutdown(self) -> None:
        self.shut += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 5.0}

    def from_items(self, rows: list[dict[str, str]]) -> Any:
        self.rows = rows
        return self

    def map_batches(
        self, kind: Any, *, fn_constructor_args: Any, batch_size: int, num_cpus: int, num_gpus: Any, compute: Any
    ) -> Any:
        assert compute == (1, 5 // num_cpus) and num_gpus is None
        worker = kind(*fn_constructor_args)
        starts = range(0, len(self.rows), batch_size)
        batches = [self.rows[i : i + batch_size] for i in starts]
        columns = [{k: np.array([row[k] for row in batch], dtype=object) for k in batch[0]} for batch in batches]
        self.told = [{"failed": text} for batch in columns for text in worker(batch)["failed"]]
        return self

    def iter_rows(self) -> list[dict[str, str]]:
        return self.told


def test_masks_are_those_of_one_machine(tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = LocalRay()
    monkeypatch.setattr(ray_cluster, "import_extra", lambda module, extra: ray)
    monkeypatch.setattr(segment_ray, "PICTURES_AT_ONCE", 2)
    spread = segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "spread"), address="local", threads=2)
    alone = segment_files(engine, [str(tmp_path / "photos")], tmp_path / "alone")
    assert (spread.images, len(spread.failed)) == (alone.images, len(alone.failed)) == (5, 1)
    assert "broken.jpg" in spread.failed[0]
    masks = sorted(p.name for p in (tmp_path / "alone").iterdir())
    assert sorted(p.name for p in (tmp_path / "spread").iterdir()) == masks
    assert all((tmp_path / "spread" / m).read_bytes() == (tmp_path / "alone" / m).read_bytes() for m in masks)
    assert (ray.addresses, ray.shut) == (["local"], 1)


def test_a_cluster_is_left_when_a_worker_fails(tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = LocalRay()
    ray.iter_rows = lambda: 1 / 0  # type: ignore[method-assign]
    monkeypatch.setattr(ray_cluster, "import_extra", lambda module, extra: ray)
    with pytest.raises(ZeroDivisionError):
        segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "out"), address="auto")
    assert (ray.addresses, ray.shut) == (["auto"], 1)


def test_without_ray_it_says_what_to_install(tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UnavailableError, match=r"pip install 'tsss-edge\[scale\]'"):
        segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "out"), address="auto")
    assert not (tmp_path / "out").exists()


def test_nobody_at_the_address_is_told_at_once(tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "import_extra", lambda module, extra: LocalRay())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but not listening
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=f"no Ray cluster at '{address}'.*ray start --head"):
            segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "out"), address=address)


def test_a_cluster_that_does_not_come_up_is_one_line(
    tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = LocalRay()

    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nIt may be overloaded.")  # as Ray says it

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray_cluster, "import_extra", lambda module, extra: ray)
    with pytest.raises(
        UnavailableError, match=r"no Ray cluster at 'local' \(The current node timed out during startup.\);"
    ):
        segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "out"), address="local")


def test_a_damaged_engine_is_told_before_the_cluster_is_asked(tmp_path: Path, engine: Path) -> None:
    engine.with_suffix(".bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="its hash is not the one"):
        segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "out"), address="auto")


def test_finished_masks_are_left_and_the_others_made(
    tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, out = LocalRay(), tmp_path / "out"
    monkeypatch.setattr(ray_cluster, "import_extra", lambda module, extra: ray)
    segment_on_ray(engine, [str(tmp_path / "photos")], str(out), address="auto")
    (out / "0.png").write_bytes(b"kept")
    (out / "1.png").unlink()
    report = segment_on_ray(engine, [str(tmp_path / "photos")], str(out), address="auto")
    assert (report.images, report.finished_before, len(report.failed)) == (1, 4, 1)
    assert (out / "0.png").read_bytes() == b"kept" and (out / "1.png").is_file()
    assert segment_on_ray(engine, [str(tmp_path / "photos")], str(out), address="auto", again=True).images == 5
    assert (out / "0.png").read_bytes() != b"kept"


def test_an_error_budget(tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = LocalRay()
    monkeypatch.setattr(ray_cluster, "import_extra", lambda module, extra: ray)
    report = segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "a"), address="auto", max_failed=1)
    assert len(report.failed) == 1
    with pytest.raises(DataError, match=r"given up: 1 pictures failed, allowed 0; the first: .*broken.jpg"):
        segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "b"), address="auto", max_failed=0)
    assert ray.shut == 2


def test_addresses_in_and_out(tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`file://` stands for every file system of pyarrow: listing, reading, whole writing, what is finished."""
    pytest.importorskip("pyarrow")
    ray, real = LocalRay(), ray_cluster.import_extra
    monkeypatch.setattr(
        ray_cluster, "import_extra", lambda module, extra: ray if module.startswith("ray") else real(module, extra)
    )
    out = f"file://{tmp_path}/remote"
    report = segment_on_ray(engine, [f"file://{tmp_path}/photos"], out, address="auto", overlay=True)
    alone = segment_files(engine, [str(tmp_path / "photos")], tmp_path / "alone", overlay=True)
    assert (report.images, len(report.failed)) == (alone.images, 1)
    names = sorted(p.name for p in (tmp_path / "alone").iterdir())
    assert sorted(p.name for p in (tmp_path / "remote").iterdir()) == names and len(names) == 10
    assert all((tmp_path / "remote" / n).read_bytes() == (tmp_path / "alone" / n).read_bytes() for n in names)
    assert segment_on_ray(engine, [f"file://{tmp_path}/photos"], out, address="auto").finished_before == 5
    with pytest.raises(DataError, match="cannot be listed"):
        segment_on_ray(engine, [f"file://{tmp_path}/nothing"], out, address="auto")


def test_addresses_with_a_slash_at_the_end_and_with_settings(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "p/day").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "p/day/a.png")
    jobs = plan_anywhere([f"file://{tmp_path}/p/"], "s3://bucket/masks/?endpoint_override=store:9000")
    assert jobs == {f"file://{tmp_path}/p/day/a.png": "s3://bucket/masks/day/a.png?endpoint_override=store:9000"}


@pytest.mark.parametrize(("resources", "gpus", "workers"), [({"CPU": 8.0}, 0, 4), ({"CPU": 8.0, "GPU": 1.0}, 0.5, 2)])
def test_workers_of_a_cluster(resources: dict[str, float], gpus: float, workers: int) -> None:
    assert segment_ray._workers(resources, 2, gpus, grows=False) == workers


@pytest.fixture
def quiet_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.mark.parametrize(("resources", "gpus"), [({"CPU": 1.0}, 0), ({"CPU": 8.0}, 0.5)])
def test_a_worker_that_fits_nowhere_is_told_instead_of_waited_for(resources: dict[str, float], gpus: float) -> None:
    with pytest.raises(UnavailableError, match="give lower --threads and --gpus"):
        segment_ray._workers(resources, 4, gpus, grows=False)
    assert segment_ray._workers(resources, 4, gpus, grows=True) == 1, "Ray asks for nodes"


def test_names_with_blanks_and_signs(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "p").mkdir()
    for name in ("photo 1.png", "a#1.png", "a#2.png", "100%.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "p" / name)
    jobs = plan_anywhere([f"file://{tmp_path}/p"], f"file://{tmp_path}/masks")
    assert {file_system(picture)[1] for picture in jobs} == {str(path) for path in (tmp_path / "p").iterdir()}
    assert {Path(file_system(mask)[1]).name for mask in jobs.values()} == {p.name for p in (tmp_path / "p").iterdir()}


@pytest.mark.slow_all
@pytest.mark.usefixtures("quiet_ray")
@pytest.mark.filterwarnings("default")  # Ray's own deprecations
def test_on_ray_itself(tmp_path: Path, engine: Path) -> None:
    report = segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "out"), address="local")
    assert (report.images, len(report.failed)) == (5, 1)
    alone = segment_files(engine, [str(tmp_path / "photos")], tmp_path / "alone")
    assert alone.images == 5
    assert all((tmp_path / f"out/{i}.png").read_bytes() == (tmp_path / f"alone/{i}.png").read_bytes() for i in range(5))
    again = segment_on_ray(engine, [str(tmp_path / "photos")], str(tmp_path / "out"), address="local")
    assert (again.images, again.finished_before) == (0, 5)
