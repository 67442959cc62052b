"""A real Triton server on loopback: equality through the wire, batches, ensembles, versions, a server that goes away."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, pictures, tiny_onnx
from tritonkit import Triton, serving
from waiting import wait_for

from tsss_edge.artifacts import IGNORE
from tsss_edge.backends import open_backend
from tsss_edge.backends.triton_client import TritonBackend, served_address
from tsss_edge.config import load_target
from tsss_edge.data.voc import SetWriter
from tsss_edge.deploy.triton import write_repository
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.build import build_engine
from tsss_edge.scoring import evaluate
from tsss_edge.segment import segment_image

grpc = pytest.importorskip("tritonclient.grpc")
pytestmark = pytest.mark.slow_all
SIZES = ((50, 70), (64, 96), (200, 120))


class Served:
    """The repository, the server on it, and the files that it was written from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository = folder, folder / "models"
        self.onnx = tiny_onnx(folder / "road.onnx", objectness=True)
        self.engine = build_engine(self.onnx.path, load_target("cpu"), folder / "road", precision="fp32")
        write_repository(self.engine.path, self.repository, name="road", python=True, ensemble=True)
        write_repository(self.onnx.path, self.repository, name="yard", python=True)
        self.server: Triton


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("triton"))
    with serving(made.repository, made.folder / "log.txt") as made.server:
        yield made


def backend(served: Served, model: str, options: str = "", **settings: Any) -> TritonBackend:
    address = served_address(f"triton://{served.server.grpc}/{model}{options}")
    assert address is not None
    return TritonBackend(address, **settings)


@pytest.mark.parametrize("options", ["", "?shm=0"])
@pytest.mark.parametrize("model", ["road", "yard"])
def test_what_comes_through_the_server_is_what_comes_without_it(served: Served, model: str, options: str) -> None:
    local = open_backend(served.engine if model == "road" else served.onnx)
    with local, backend(served, model, options) as remote:
        assert (remote.classes, remote.preprocess) == (local.classes, local.preprocess)
        assert [o.name for o in remote.outputs] == [o.name for o in local.outputs]
        for seed in range(5):
            images = pictures(1, seed)
            here = {name: array.copy() for name, array in local.infer(images).items()}
            there = remote.infer(images)
            assert all(float(np.abs(here[name] - there[name]).max()) == 0.0 for name in here)


def test_batches_of_any_size_and_the_newest_answer_in_each_slot(served: Served) -> None:
    with backend(served, "road", slots=3) as remote, open_backend(served.engine) as local:
        for number in (1, 3, 8, 2):
            images = pictures(number, number)
            found = remote.infer(images)["logits"].copy()
            alone = [local.infer(images[row : row + 1])["logits"][0].copy() for row in range(number)]
            assert np.array_equal(found, np.stack(alone))


def test_requests_under_load_share_executions(served: Served) -> None:
    with backend(served, "road", slots=8) as remote, grpc_client(served) as client:
        before = statistics(client, "road")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda slot: [rerun(remote, slot) for _ in range(25)], range(8)))
        wait_for(lambda: statistics(client, "road")[0] >= before[0] + 200)  # it counts after it has answered
        now = statistics(client, "road")
    assert now[0] == before[0] + 200 and now[1] - before[1] < 200, "not one execution was shared"


def rerun(remote: TritonBackend, slot: int) -> None:
    images = pictures(1, slot)
    remote.start(slot, images)
    remote.wait(slot)


def grpc_client(served: Served) -> Any:
    return closing(grpc.InferenceServerClient(served.server.grpc))


def statistics(client: Any, model: str) -> tuple[int, int]:
    """Pictures and executions of all versions so far."""
    versions = client.get_inference_statistics(model).model_stats
    return sum(v.inference_count for v in versions), sum(v.execution_count for v in versions)


@pytest.mark.parametrize("size_hw", SIZES)
def test_the_ensembles_give_what_segment_gives(served: Served, tmp_path: Path, size_hw: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.jpg", quality=95)
    decoded = np.asarray(Image.open(tmp_path / "x.jpg"))
    data = np.frombuffer((tmp_path / "x.jpg").read_bytes(), np.uint8)
    with grpc_client(served) as client, open_backend(served.engine) as local:
        assert np.array_equal(labels(client, "road_frame", "frame", picture), segment_image(local, picture))
        assert np.array_equal(labels(client, "road_jpeg", "jpeg", data), segment_image(local, decoded))
        with pytest.raises(grpc.InferenceServerException, match="not a readable picture"):
            labels(client, "road_jpeg", "jpeg", np.zeros(10, np.uint8))


def labels(client: Any, model: str, name: str, value: np.ndarray) -> np.ndarray:
    given = grpc.InferInput(name, list(value.shape), "UINT8")
    given.set_data_from_numpy(value)
    return np.asarray(client.infer(model, [given]).as_numpy("labels"))


def test_class_names_come_with_a_classification(served: Served) -> None:
    with grpc_client(served) as client:
        given = grpc.InferInput("image", [1, 64, 96, 3], "UINT8")
        given.set_data_from_numpy(pictures())
        wanted = grpc.InferRequestedOutput("logits", class_count=1)
        told = client.infer("road", [given], outputs=[wanted]).as_numpy("logits")
        assert len(told.ravel()[0].decode().split(":")) >= 2


def test_a_server_that_goes_away_is_a_state_and_no_answer_is_lost(tmp_path: Path) -> None:
    here = Served(tmp_path)
    images = pictures()
    with open_backend(here.engine) as local:
        expected = local.infer(images)["logits"].copy()
    with serving(here.repository, tmp_path / "log.txt") as here.server, backend(here, "road") as remote:
        assert np.array_equal(remote.infer(images)["logits"], expected) and remote.state == "READY"
        here.server.stop()
        back = threading.Thread(target=here.server.start)
        remote.start(0, images)
        deadline = time.monotonic() + 30
        while remote.state != "RECONNECTING":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        back.start()
        assert np.array_equal(remote.wait(0)["logits"], expected)
        assert remote.state == "READY"
        back.join()


def test_a_server_that_stays_away_is_given_up(served: Served) -> None:
    with pytest.raises(UnavailableError, match="nobody answers there; start Triton"):
        TritonBackend(served_address("triton://127.0.0.1:9/road"))  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="nothing"):
        backend(served, "nothing")
    with pytest.raises(ArtifactError, match="does not say what its classes are"):
        backend(served, "road_frame")


def test_the_newest_version_answers_and_the_one_before_it_can_be_asked_for(tmp_path: Path) -> None:
    here = Served(tmp_path)
    other = tiny_onnx(tmp_path / "other.onnx", objectness=True)
    engine = build_engine(other.path, load_target("cpu"), tmp_path / "other", precision="fp32")
    write_repository(engine.path, here.repository, name="road", python=True, next_version=True)
    with serving(here.repository, tmp_path / "log.txt") as here.server, grpc_client(here) as client:
        ready = [client.is_model_ready("road", version) for version in ("1", "2", "3")]
        assert ready == [True, True, False]
        for version in ("", "/1", "/2"):
            with backend(here, f"road{version}") as remote:
                assert remote.infer(pictures())["logits"].shape == (1, 4, 8, 12)
        given = grpc.InferInput("image", [1, 64, 96, 3], "UINT8")
        given.set_data_from_numpy(pictures())
        assert client.infer("road", [given]).get_response().model_version == "2"
        assert "nv_inference_exec_count" in httpx.get(f"http://{here.server.metrics}/metrics").text


def test_a_stream_runs_on_a_served_engine(served: Served, tmp_path: Path) -> None:
    from tsss_edge.stream.live_loop import stream

    source = "synthetic://?size=64x48&frames=40"
    before = signal.getsignal(signal.SIGINT)
    for name, engine in (("here", served.engine.path), ("there", Path(f"triton://{served.server.grpc}/road"))):
        report = stream(engine, source, [f"{tmp_path}/{name}/"])
        assert report.frames == 40
    masks = sorted(p.name for p in (tmp_path / "here").iterdir())
    assert len(masks) == 40
    assert all((tmp_path / "here" / m).read_bytes() == (tmp_path / "there" / m).read_bytes() for m in masks)
    assert signal.getsignal(signal.SIGINT) == before


def test_the_score_through_the_server_is_that_of_the_file(served: Served, tmp_path: Path) -> None:
    """What the gate counts: mIoU, pixel accuracy and every class, on a labelled set."""
    writer = SetWriter.open(tmp_path / "set", CLASSES, {})
    for seed in range(6):
        image = pictures(1, seed)[0]
        mask = (image[..., 0] // 64).astype(np.uint8)
        mask[:, :8] = IGNORE
        writer.add("val", f"p{seed}", image, mask)
    writer.finish()
    here = evaluate(served.engine.path, tmp_path / "set")
    there = evaluate(Path(f"triton://{served.server.grpc}/road"), tmp_path / "set")
    assert here == there and here.miou > 25  # chance gives less


def test_a_stream_ends_at_once_though_its_engine_is_lost(tmp_path: Path) -> None:
    from loopkit import Beat

    from tsss_edge.stream.live_loop import run
    from tsss_edge.stream.recorder import Recorder
    from tsss_edge.stream.sources import LiveSource

    here, recorder, asked = Served(tmp_path), Recorder(), list[float]()
    with serving(here.repository, tmp_path / "log.txt") as here.server, backend(here, "road") as remote:
        source = LiveSource(lambda: Beat(0.02), name="beat")

        def lose_and_interrupt() -> None:
            wait_for(lambda: recorder.frames >= 5, 120)
            here.server.stop()
            while remote.state == "READY":
                time.sleep(0.01)
            asked.append(time.monotonic())
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # the thread that Ctrl-C is for

        threading.Thread(target=lose_and_interrupt, daemon=True).start()
        assert run(source, remote, [], recorder) == "interrupted"
        assert time.monotonic() - asked[0] < 60 and recorder.frames >= 5
        source.close()
