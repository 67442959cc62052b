"""tsss-edge: transferable semi-supervised segmentation, from labels to a live, accuracy-proven engine at the edge.

    import tsss_edge

    model = tsss_edge.load("runs/camvid/fused.int8.xml")
    found = model("street.jpg")
    print(found.areas())

The functions are those of `tsss_edge.api`; they are imported at their first use, so this import needs neither NumPy nor torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsss_edge.api import Model as Model
    from tsss_edge.api import build_engine as build_engine
    from tsss_edge.api import calibrate as calibrate
    from tsss_edge.api import check_parity as check_parity
    from tsss_edge.api import export as export
    from tsss_edge.api import load as load
    from tsss_edge.api import segment as segment
    from tsss_edge.api import stream as stream
    from tsss_edge.api import train as train
    from tsss_edge.segmentation import Segmentation as Segmentation

__version__ = "0.1.0"

_HOMES = {
    "Segmentation": "tsss_edge.segmentation",
    **dict.fromkeys(("Model", "build_engine", "calibrate", "check_parity", "load"), "tsss_edge.api"),
}
_ROOMS = ("export", "segment", "stream", "train")  # modules of the package that are functions of the face too


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"tsss_edge.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})


class _Room(ModuleType):
    """A module that can be called: `tsss_edge.train(...)` is `tsss_edge.api.train(...)`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(import_module("tsss_edge.api"), self.__name__.rpartition(".")[2])(*arguments, **options)


class _Face(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):  # Python sets a module here when it has loaded it
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
