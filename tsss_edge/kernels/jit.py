"""Compile the CPU kernels once: machine code is cached on disk and made when a kernel's module is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba import types

OPTIONS = {"nogil": True, "error_model": "numpy"}


def compiled(signature: Any) -> Callable[[Any], Any]:
    """A numba decorator: without the GIL, for exactly one signature, so that no call can start the compiler.

    The machine code is kept beside the module, else in the user's cache folder (NUMBA_CACHE_DIR moves it). Where
    neither can be written it is compiled at every start.
    """

    def decorate(function: Any) -> Any:
        try:
            return numba.njit([signature], cache=True, **OPTIONS)(function)
        except RuntimeError as error:  # numba: "cannot cache function ...: no locator available for file ..."
            if "cannot cache" not in str(error):
                raise
            return numba.njit([signature], **OPTIONS)(function)

    return decorate


def read(dtype: Any, ndim: int) -> Any:
    """Type of a C-contiguous array that a kernel only reads: writable or not, both are taken."""
    return types.Array(dtype, ndim, "C", readonly=True)


def write(dtype: Any, ndim: int) -> Any:
    """Type of a C-contiguous array that a kernel writes."""
    return types.Array(dtype, ndim, "C")
