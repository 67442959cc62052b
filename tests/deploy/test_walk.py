"""How often one command reads its files, and how much code a reader walks through: counted, so that it stays so."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import netkit
import onnx
import pytest

import tsss_edge
from tsss_edge import artifacts, files
from tsss_edge.artifacts import Engine, OnnxModel
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.deploy.choose import choose_engine
from tsss_edge.export import onnx_export
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx

CPU = msgspec.structs.replace(load_target("cpu"), min_reference=0.0)  # networks here are random
PACKAGE = Path(tsss_edge.__file__).parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, net.pt, net.onnx and net.int8.onnx."""
    root = tmp_path_factory.mktemp("made")
    model = export_onnx(netkit.checkpoint(root / "net.pt"), root / "net.onnx")
    calibrate(model, netkit.write_set(root / "data"), root / "net.int8.onnx", method="minmax")
    return root


class Reads:
    """Parses of ONNX files by what they hold, and digests by what they are of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parses: Counter[bytes] = Counter()
        self.hashes: Counter[str] = Counter()
        parse, digest, digest_file = onnx.load_model_from_string, files.sha256_bytes, files.sha256_file

        def counted_parse(data: bytes, *args: Any, **options: Any) -> Any:
            self.parses[bytes(data)] += 1
            return parse(data, *args, **options)

        monkeypatch.setattr(onnx, "load_model_from_string", counted_parse)
        monkeypatch.setattr(onnx, "load", self._forbidden)
        open_seal, seal_onnx = artifacts.open_seal, artifacts.seal_onnx
        monkeypatch.setattr(artifacts, "open_seal", self._counted(open_seal, 0))
        monkeypatch.setattr(artifacts, "seal_onnx", self._counted(seal_onnx, 2))
        for module in [m for name, m in sys.modules.items() if name.startswith("tsss_edge")]:
            if hasattr(module, "sha256_bytes"):
                monkeypatch.setattr(module, "sha256_bytes", self._counted(digest))
            if hasattr(module, "sha256_file"):
                monkeypatch.setattr(module, "sha256_file", self._counted(digest_file))

    def _counted(self, digest: Callable[..., Any], place: int | None = None) -> Callable[..., Any]:
        """`digest`, counted by the hash that it gives, or that stands at `place` of what it gives."""

        def call(*args: Any) -> Any:
            result = digest(*args)
            self.hashes[result if place is None else result[place]] += 1
            return result

        return call

    def _forbidden(self, path: object, **_: object) -> None:
        raise AssertionError(f"{path} is parsed beside OnnxModel")


def test_one_build_parses_the_int8_file_once_and_hashes_everything_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, int8 = Reads(monkeypatch), (made / "net.int8.onnx").read_bytes()
    engine = build_engine(made / "net.int8.onnx", CPU, tmp_path / "net", precision="int8")
    assert reads.parses == {int8: 1}
    assert reads.hashes[engine.record.onnx_sha256] == 1
    assert all(reads.hashes[sha256] == 1 for sha256 in engine.record.files.values())
    Engine.load(engine.path)
    assert all(reads.hashes[sha256] == 2 for sha256 in engine.record.files.values())


def test_a_choice_exports_a_checkpoint_once(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports: list[str] = []
    build_graph = onnx_export.build_graph

    def counted(*args: Any) -> Any:
        exports.append("fp32")
        return build_graph(*args)

    monkeypatch.setattr(onnx_export, "build_graph", counted)
    reads = Reads(monkeypatch)
    engine = _choose(made, made / "net.pt", tmp_path / "net", calib_data=made / "data")
    assert exports == ["fp32"]
    assert not reads.parses  # what was written needs no reading
    assert engine.record.build.chosen is not None and len(engine.record.build.chosen.candidates) == 3
    assert reads.hashes[engine.record.onnx_sha256] <= 2


def _choose(made: Path, model: Path | OnnxModel, out: Path, **options: Any) -> Engine:
    target = msgspec.structs.replace(CPU, max_drop=100.0)  # random weights: no gate is held
    return choose_engine(
        model, target, out, eval_data=made / "data", reference=made / "net.pt", duration_s=0.05, threads=1, **options
    )


@contextmanager
def walk() -> Iterator[tuple[set[str], set[tuple[str, str]]]]:
    """Files and functions of the package that are entered meanwhile; comprehensions, lambdas and class bodies are not functions."""
    seen_files: set[str] = set()
    seen: set[tuple[str, str]] = set()

    def enter(frame: Any, event: str, _: object) -> None:
        code = frame.f_code
        function = code.co_flags & inspect.CO_NEWLOCALS and not code.co_name.startswith("<")
        if event == "call" and function and code.co_filename.startswith(str(PACKAGE)):
            seen_files.add(code.co_filename)
            seen.add((code.co_filename, code.co_qualname if hasattr(code, "co_qualname") else code.co_name))

    sys.setprofile(enter)
    try:
        yield seen_files, seen
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize(
    # 30 / 208 and 36 / 271 when the house was built. Since then: the strict reader of pictures, the gate on empty references,
    # imported references, recorded answers, the choice of a GPU, networks that have a mean. Then disk.py, seals.py and ids.py:
    # locks, files that change together, digests, ids that are names. Then the field's profile at the gate, unsigned steps for
    # OpenVINO, the line for CPUs that saturate, the one OpenVINO core of a process, one rule for the reference of a gate and one for
    # the precision that is wanted, targets that are checked.
    ("name", "most_files", "most_functions", "before"),
    [("net.int8.onnx", 39, 292, "33 / 227"), ("net.pt", 47, 367, "40 / 297")],
)
def test_files_and_functions_of_a_choice(
    made: Path, tmp_path: Path, name: str, most_files: int, most_functions: int, before: str
) -> None:
    options = {"calib_data": made / "data"} if name == "net.pt" else {}
    with walk() as (entered, functions):
        _choose(made, made / name, tmp_path / "net", **options)
    print(f"{name}: {len(entered)} files / {len(functions)} functions (before: {before})")
    assert len(entered) <= most_files, sorted(entered)
    assert len(functions) <= most_functions, sorted(functions)
