"""The way to a Ray cluster: its address and token, and what went wrong in one line."""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from tsss_edge.backends.base import import_extra
from tsss_edge.errors import UnavailableError

CONNECT_S = 5.0
TOKEN = Path(".ray/auth_token")  # where `ray get-auth-token --generate` puts it, below the home folder
ADDRESS_HELP = (
    "start one with `ray start --head`, give its HOST:PORT, `auto` for a running one, `local` for this machine; a cluster with "
    "a token wants the same in RAY_AUTH_TOKEN or ~/.ray/auth_token here"
)


def connect(address: str) -> Any:
    """Ray, connected. `address`: "local" (this machine alone), "auto" (a running cluster), HOST:PORT or ray://HOST:PORT.

    Raises: UnavailableError: Ray is not installed, or there is no cluster.
    """
    _require_listener(address)
    has_token = os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / TOKEN).is_file()
    if address != "local" and "RAY_AUTH_MODE" not in os.environ and has_token:
        os.environ["RAY_AUTH_MODE"] = "token"  # read when Ray is imported; without it a token is not sent
    ray = import_extra("ray", "scale")
    import_extra("ray.data", "scale")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {"address": address}
    if address == "local":  # on loopback: a cluster for this machine alone is nobody else's business
        options = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    except Exception as error:  # a node that does not come up in time is told as a plain Exception
        first = (str(error).strip().splitlines() or ["no answer"])[0]
        raise UnavailableError(f"no Ray cluster at {address!r} ({first}); {ADDRESS_HELP}") from error
    return ray


def _require_listener(address: str) -> None:
    """Ray itself tries for minutes when nobody listens at HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UnavailableError(f"no Ray cluster at {address!r} ({error}); {ADDRESS_HELP}") from error
