"""`--device N` is there wherever a GPU may be used, and chooses before anything runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import typer

from tsss_edge.backends.cuda import gpus
from tsss_edge.cli import WITHOUT_GPU, app
from tsss_edge.errors import UnavailableError

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TRAINING = COMMANDS["train"].commands


@pytest.mark.parametrize("name", [*COMMANDS, *(f"train {name}" for name in TRAINING)])
def test_which_commands_have_it(name: str) -> None:
    command = TRAINING[name[6:]] if name.startswith("train ") else COMMANDS[name]
    without = {function.__name__.removesuffix("_").removesuffix("_of") for function in WITHOUT_GPU} | {"data", "train"}
    has = any("--device" in option.opts for option in command.params)
    assert has == (name.replace("-", "_") not in without)


@pytest.mark.parametrize(
    "words", [("doctor",), ("triton", "t.xml", "--out", "models")]
)  # the second proves what it writes
def test_it_chooses_the_gpu_of_this_process(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    chosen: list[int] = []

    def choose(index: int) -> None:
        chosen.append(index)
        raise UnavailableError("that will do")

    monkeypatch.setattr(gpus, "choose_gpu", choose)
    assert run(*words, "--device", "3")[0] == 4
    assert chosen == [3]


def test_no_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(gpus, "driver_problem", lambda: "no CUDA driver")
    with pytest.raises(UnavailableError, match="no GPU 1: no CUDA driver"):
        gpus.choose_gpu(1)
    assert gpus.os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    with pytest.raises(UnavailableError, match="no GPU 1: CUDA_VISIBLE_DEVICES=7 shows 1"):
        gpus.choose_gpu(1)
