"""A TensorRT bindings wheel -> its API surface as JSON (every class with its attributes), without TensorRT itself.

The bindings link to a handful of C functions of libnvinfer. Stubs that return NULL let the module load, and `dir` then
tells every name. Needs gcc and a Python of the wheel's version:

    pip download tensorrt_cu12_bindings==10.3.0 --no-deps --only-binary=:all: --python-version 3.10
    python3.10 scripts/record_trt_api.py tensorrt_cu12_bindings-10.3.0-*.whl tests/backends/trt_api/10.3.0.json
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins", "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi", "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)  # fmt: skip


def needed(library: Path) -> list[str]:
    """TensorRT libraries that `library` links to."""
    text = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    names = [line.split("[")[1].split("]")[0] for line in text.splitlines() if "(NEEDED)" in line]
    return [name for name in names if name.startswith(("libnv", "libtensorrt"))]


def load_stubs(names: list[str], folder: Path) -> None:
    """Compile and load one stub under each of `names`."""
    source = folder / "stub.c"
    source.write_text("".join(f"void *{f}(void) {{ return 0; }}\n" for f in FUNCTIONS))
    for name in names:
        command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)


def surface(module: Any) -> dict[str, list[str] | None]:
    """Public names of a module; a class comes with its attributes."""
    names = [n for n in sorted(dir(module)) if not n.startswith("_")]
    values = {n: getattr(module, n) for n in names}
    return {n: [a for a in dir(v) if not a.startswith("_")] if isinstance(v, type) else None for n, v in values.items()}


def record(wheel: Path, out: Path) -> None:
    """Write the surface of `wheel` to `out`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            member = next(n for n in archive.namelist() if n.endswith(("/tensorrt.so", "/tensorrt_rtx.so")))
            library = Path(archive.extract(member, folder))
        load_stubs(needed(library), folder)
        spec = importlib.util.spec_from_file_location(library.stem, library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        content = {"wheel": wheel.name, "names": surface(module)}
    out.write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]), Path(sys.argv[2]))
