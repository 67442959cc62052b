"""A real Triton server on loopback for the tests, from the wheel `nvidia-pytriton`, in an environment of its own.

It wants NumPy below 2, so it cannot share ours. The environment is made once, in the cache folder; TSSS_EDGE_TRITON names the
Python of one that is there already.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fakedriver
import httpx
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "nvidia-pytriton", "numpy<2", "opencv-python-headless<5", "openvino", "onnxruntime", "onnx", "numba", "msgspec", "pillow",
)  # fmt: skip
PATIENCE_S = 180.0


def triton_python() -> Path:
    """The Python of Triton's environment; skips the test where it cannot be made."""
    if given := os.environ.get("TSSS_EDGE_TRITON"):
        return Path(given)
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tsss-edge/tests/triton"
    python = folder / "bin/python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with fakedriver.locked(folder):  # tests run side by side
        if not (folder / "ready").is_file():
            _make_environment(folder, python)
    return python


def _make_environment(folder: Path, python: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *PACKAGES], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no environment for Triton: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    (folder / "ready").touch()


def _server_folder(python: Path) -> Path:
    """Triton's files, with the stub of this Python beside the Python back end."""
    site = next((python.parent.parent / "lib").glob("python3.*/site-packages"))
    folder = site / "pytriton/tritonserver"
    version = site.parent.name.removeprefix("python")
    stub = folder / "backends/python/triton_python_backend_stub"
    if not stub.is_file():
        shutil.copy(folder / f"python_backend_stubs/{version}/triton_python_backend_stub", stub)
    return folder


class Triton:
    """A running server: `grpc` and `http` are host:port."""

    def __init__(self, python: Path, repository: Path, log: Path) -> None:
        self._python, self._repository, self.log = python, repository, log
        self.ports = _free_ports(3)
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{port}" for port in self.ports)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until every model is ready. Triton's own Python stub dies at times while it loads (a trap in the kernel's
        log); then once more."""
        for last in (False, True):
            self._launch()
            if self._comes_up():
                return
            self.stop()
            if last:
                raise AssertionError(f"Triton did not start:\n{self.log.read_text()[-4000:]}")

    def _launch(self) -> None:
        folder = _server_folder(self._python)
        http, grpc, metrics = map(str, self.ports)
        command = [
            folder / "bin/tritonserver", "--model-repository", self._repository, "--backend-directory", folder / "backends",
            "--http-address", "127.0.0.1", "--http-port", http, "--grpc-address", "127.0.0.1", "--grpc-port", grpc,
            "--metrics-port", metrics, "--exit-on-error", "true",
        ]  # fmt: skip
        libraries = folder.parent.parent / "nvidia_pytriton.libs"
        environment = {
            **os.environ,
            "PATH": f"{self._python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{folder.parent.parent}",
            "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}",
            "VIRTUAL_ENV": str(self._python.parent.parent),
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)

    def _comes_up(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def _ready(self) -> bool:
        try:
            return httpx.get(f"http://{self.http}/v2/health/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:  # open together, or two might be the same
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [int(one.getsockname()[1]) for one in free]


@contextmanager
def serving(repository: Path, log: Path) -> Iterator[Triton]:
    """A server for `repository` within the block."""
    server = Triton(triton_python(), repository, log)
    server.start()
    try:
        yield server
    finally:
        server.stop()
