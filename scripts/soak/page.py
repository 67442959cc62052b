"""The live page under clients that mean no good -> how long an authorised request takes meanwhile, and what memory does.

python -m soak.page --clients 200 --body-mib 1024
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from typing import Any

import httpx

from soak.live import resident_mib
from tsss_edge.artifacts import Classes
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.web import open_web

CLASSES = Classes(names=("background", "cat"))
MIB = 1 << 20


def flood(host: str, port: int, mib: int, token: str, sent: list[int]) -> None:
    """One client that has a token and sends a body of so many MiB, as far as it is let."""
    with socket.create_connection((host, port), timeout=60) as client:
        head = f"POST /api/view HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode())
        chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
        with contextlib.suppress(OSError):  # it is cut off: what we hope for
            for _ in range(mib):
                client.sendall(chunk)
                sent[0] += 1


def soak_page(clients: int, body_mib: int, seconds: float = 10.0) -> dict[str, Any]:
    """Ask once every 0.1 s for the numbers while `clients` are silent and one sends a large body."""
    web = open_web("0.0.0.0:0", classes=CLASSES, recorder=Recorder())
    port, token = int(web.url.split(":")[2].split("/")[0]), web.url.partition("token=")[2]
    url, headers = f"http://127.0.0.1:{port}/api/status", {"Authorization": f"Bearer {token}"}
    times, sent, statuses = [], [0], []
    silent: list[socket.socket] = []
    try:
        for _ in range(3):
            httpx.get(url, headers=headers, timeout=60)
        before = resident_mib()
        silent += [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(clients)]
        bodies = threading.Thread(target=flood, args=("127.0.0.1", port, body_mib, token, sent))
        bodies.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            statuses.append(httpx.get(url, headers=headers, timeout=60).status_code)
            times.append(time.monotonic() - began)
            statuses.append(httpx.get(url.replace("/api/status", "/healthz"), timeout=60).status_code)
            time.sleep(0.1)
        bodies.join(timeout=60)
        grown = resident_mib() - before
    finally:
        for client in silent:
            client.close()
        web.close()
    return {
        "silent_clients": clients,
        "body_mib": body_mib,
        "body_mib_taken": sent[0],
        "requests": len(times),
        "slowest_s": round(max(times), 3),
        "memory_grown_mib": round(grown, 2),
        "passed": max(times) < 1.0 and grown < 10 and set(statuses) <= {200, 503} and statuses[0] == 200,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--body-mib", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    report = soak_page(args.clients, args.body_mib, args.seconds)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
