"""Bundles: parts of the asked size, that join, install without a network, and refuse the wrong host."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tsss_edge.deploy.bundle import MIB, Bundle, pack, pip_options, run_pip, store_uncompressed, write_bundle
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import read_json, sha256_file

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def small_wheel(
    folder: Path, name: str = "hello", size: int = 100, *, tag: str = "py3-none-any", needs: str = ""
) -> Path:
    """A wheel that pip installs: one module, `size` bytes that do not compress."""
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.py", "WORD = 'world'\n")
        archive.writestr(f"{name}.bin", os.urandom(size))
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def nothing(arguments: Sequence[str]) -> None:
    """Stands in for pip: what is asked for is there already."""


def test_parts_are_cut_to_size_and_join_to_the_same_tree(tmp_path: Path) -> None:
    content, parts = tmp_path / "content", tmp_path / "parts"
    content.mkdir(), parts.mkdir()
    (content / "noise").write_bytes(os.urandom(2500))
    paths = pack(content, parts, 1000, preset=0)
    sizes = [p.stat().st_size for p in paths]
    assert [p.name for p in paths] == ["bundle.tar.xz.000", "bundle.tar.xz.001", "bundle.tar.xz.002"]
    assert sizes[:-1] == [1000, 1000] and 0 < sizes[-1] <= 1000
    joined = b"".join(p.read_bytes() for p in paths)
    done = subprocess.run(["tar", "-xJf", "-", "-C", parts], input=joined, check=False)
    assert done.returncode == 0
    assert (parts / "noise").read_bytes() == (content / "noise").read_bytes()


def test_more_than_a_thousand_parts_are_joined_in_their_order(tmp_path: Path) -> None:
    content, parts = tmp_path / "content", tmp_path / "parts"
    content.mkdir(), parts.mkdir()
    (content / "noise").write_bytes(os.urandom(11_000))
    paths = pack(content, parts, 10, preset=0)
    assert len(paths) > 1000 and sorted(paths) == paths, "`cat bundle.tar.xz.*` takes them so"


def test_stored_wheel_has_the_same_content(tmp_path: Path) -> None:
    wheel = small_wheel(tmp_path)
    before = {i.filename: i.CRC for i in zipfile.ZipFile(wheel).infolist()}
    store_uncompressed(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert {i.filename: i.CRC for i in archive.infolist()} == before
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
    assert [p.name for p in tmp_path.iterdir()] == [wheel.name]


def test_pip_is_asked_for_the_hosts_wheels(tmp_path: Path) -> None:
    options = pip_options(tmp_path, "3.10", "aarch64")
    assert options[0] == "download"
    assert ("--abi", "cp310") in pairwise(options)
    assert ("--platform", "manylinux_2_17_aarch64") in pairwise(options)
    assert "x86_64" not in " ".join(options)


def test_what_a_given_wheel_needs_is_fetched_too(tmp_path: Path) -> None:
    """PyCUDA's own wheel, built on a machine like the host: pip itself says that it may be fetched for, and what it needs."""
    built = small_wheel(tmp_path, tag="cp311-cp311-linux_x86_64", needs="Requires-Dist: needed\n")
    (index := tmp_path / "index").mkdir()
    needed = small_wheel(index, "needed")

    def fetch(arguments: Sequence[str]) -> None:
        asked = [argument for argument in arguments if "tsss_edge" not in Path(argument).name]  # needs an index
        run_pip([*asked, "--no-index", "--find-links", str(index)])

    bundle = write_bundle(
        tmp_path / "bundle", python="3.11", machine="x86_64", extras=(), wheels=[built], part_mib=1, preset=0,
        download=fetch,
    )  # fmt: skip
    assert {built.name, needed.name} <= set(bundle.wheels)


@pytest.mark.parametrize(
    ("machine", "python", "fetches"), [("x86_64", "3.10", 1), ("aarch64", "3.10", 2), ("aarch64", "3.13", 1)]
)
def test_a_bundle_for_arm_has_the_numpy_of_a_jetson_too(
    tmp_path: Path, machine: str, python: str, fetches: int
) -> None:
    """pip reads the markers of the machine that it runs on, where NumPy 2 is right."""
    asked: list[list[str]] = []
    write_bundle(
        tmp_path / "bundle", python=python, machine=machine, extras=(), part_mib=1, preset=0,
        requirements=["tomli; python_version<'3.11'"], download=lambda arguments: asked.append(list(arguments)),
    )  # fmt: skip
    assert """'tomli; python_version<'"'"'3.11'"'"''""" in (tmp_path / "bundle/install.sh").read_text()
    assert len(asked) == fetches
    assert [a[-2:] for a in asked[1:]] == [["--no-deps", "numpy>=1.26,<2"]] * (fetches - 1)


def make(tmp_path: Path, **options: object) -> Bundle:
    extra = tmp_path / "scene.txt"
    extra.write_text("a file that comes along")
    ready = small_wheel(tmp_path, size=MIB)
    return write_bundle(
        tmp_path / "bundle", python=PYTHON, machine=platform.machine(), extras=(), wheels=[ready], files=[extra],
        part_mib=1, preset=0, download=nothing, **options,
    )  # fmt: skip


def test_bundle_and_its_record(tmp_path: Path) -> None:
    bundle = make(tmp_path)
    assert read_json(tmp_path / "bundle/bundle.json", Bundle) == bundle
    assert len(bundle.parts) == 2, "one MiB of noise and our own wheel do not fit into one part of one MiB"
    assert bundle.wheels["hello-1.0-py3-none-any.whl"] == sha256_file(tmp_path / "hello-1.0-py3-none-any.whl")
    names = {p.name for p in (tmp_path / "bundle").iterdir()}
    assert names == {*bundle.parts, "bundle.json", "install.sh", "SHA256SUMS"}


def test_install_script_installs_without_a_network(tmp_path: Path) -> None:
    make(tmp_path)
    script = (tmp_path / "bundle/install.sh").read_text()
    script = script.replace("--no-index", "--no-index --no-deps")  # only our own two wheels are inside
    (tmp_path / "bundle/install.sh").write_text(script)
    env = {**os.environ, "PYTHON": sys.executable, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([tmp_path / "bundle/install.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    check = "import hello, tsss_edge; print(hello.WORD, tsss_edge.__version__)"
    told = subprocess.run(
        [tmp_path / "bundle/venv/bin/python", "-c", check], capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith("world ")
    assert (tmp_path / "bundle/files/scene.txt").read_text() == "a file that comes along"


def test_install_script_refuses_another_python_and_a_damaged_part(tmp_path: Path) -> None:
    make(tmp_path)
    script = tmp_path / "bundle/install.sh"
    wrong = script.read_text().replace(f'"{PYTHON} ', '"3.99 ')
    (tmp_path / "bundle/wrong.sh").write_text(wrong)
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["sh", tmp_path / "bundle/wrong.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "this bundle is for Python" in done.stderr
    part = tmp_path / "bundle/bundle.tar.xz.000"
    part.write_bytes(part.read_bytes()[:-1])
    done = subprocess.run(["sh", script], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "bundle.tar.xz.000: FAILED" in done.stdout
    assert not (tmp_path / "bundle/venv").exists()


def test_kernels_travel_inside_our_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsss_edge.kernels import fatbin

    monkeypatch.setattr(fatbin, "build", lambda path: path.write_bytes(b"code for all GPUs"))
    make(tmp_path, kernels=True)
    joined = b"".join(p.read_bytes() for p in sorted((tmp_path / "bundle").glob("bundle.tar.xz.*")))
    subprocess.run(["tar", "-xJf", "-", "-C", tmp_path], input=joined, check=True)
    with zipfile.ZipFile(next((tmp_path / "wheels").glob("tsss_edge-*.whl"))) as wheel:
        assert wheel.read(f"tsss_edge/kernels/kernels-{fatbin.source_hash()}.fatbin") == b"code for all GPUs"


def test_a_failing_compiler_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsss_edge.kernels import fatbin

    def fails(path: Path) -> None:
        raise UnavailableError("nvcc could not build the kernels")

    monkeypatch.setattr(fatbin, "build", fails)
    with pytest.raises(UnavailableError, match="nvcc could not build"):
        write_bundle(tmp_path / "b", download=nothing, kernels=True)
    assert list(tmp_path.iterdir()) == []


def test_failures_leave_nothing(tmp_path: Path) -> None:
    def fails(arguments: Sequence[str]) -> None:
        raise UnavailableError("pip cannot download for that host: no such wheel")

    with pytest.raises(UnavailableError, match="no such wheel"):
        write_bundle(tmp_path / "b", download=fails)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        write_bundle(tmp_path / "b", download=nothing)
    for name in ("a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "best.pt").write_text(name)
    with pytest.raises(ArtifactError, match=r"two files named best\.pt"):
        write_bundle(tmp_path / "c", download=nothing, files=[tmp_path / "a/best.pt", tmp_path / "b/best.pt"])
    for bad in ({"python": "2.7"}, {"machine": "riscv64"}, {"part_mib": 0}, {"extras": ["nosuch"]}):
        with pytest.raises(ValueError):
            write_bundle(tmp_path / "c", download=nothing, **bad)
