"""`PrimaryContext`, the driver's C API through ctypes: on a GPU, or on the fake driver (`tests/fakecuda`)."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tsss_edge.backends.cuda.driver import PrimaryContext
from tsss_edge.errors import UnavailableError

pytestmark = pytest.mark.gpu


def test_bytes_go_to_the_gpu_and_come_back_from_another_thread() -> None:
    cuda = PrimaryContext()
    sent, back = cuda.pinned((3, 5), "float32"), cuda.pinned((3, 5), "float32")
    address, stream = cuda.allocate(sent.nbytes), cuda.stream()
    sent[...] = np.arange(15).reshape(3, 5)
    assert not back.any(), "zeroed"

    def work() -> None:
        cuda.use()
        cuda.copy_in(address, sent, stream)
        cuda.copy_out(back, address, stream)
        cuda.synchronize(stream)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(back, sent)
    cuda.close()
    cuda.close()


def test_what_the_driver_refuses_is_one_plain_error() -> None:
    cuda = PrimaryContext()
    with pytest.raises(UnavailableError, match=r"out of GPU memory"):
        cuda.allocate(1 << 46)
    cuda.close()
