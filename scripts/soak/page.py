"""The live page under clients that mean no good -> how long an authorised request takes meanwhile, and what memory does.

python -m soak.page --clients 200 --body-mib 1024
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from soak.world import told
from tsss_edge.artifacts import Classes

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


SERVE = """
import sys
from soak.page import CLASSES
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.web import open_web
web = open_web("0.0.0.0:0", classes=CLASSES, recorder=Recorder())
print(web.url, flush=True)
sys.stdin.readline()
web.close()
"""


class Served:
    """The page in a process of its own, so that its memory is its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        url = self._process.stdout.readline().strip()
        self.port, self.token = int(url.split(":")[2].split("/")[0]), url.partition("token=")[2]

    def ask(self, path: str) -> tuple[int, float]:
        """Status, and seconds from connecting to the last byte."""
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, time.monotonic() - began

    def resident_mib(self) -> float:
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * 4096 / MIB

    def close(self) -> None:
        self._process.communicate("\n", timeout=60)


def soak_page(clients: int, body_mib: int, seconds: float = 10.0) -> dict[str, Any]:
    """Ask for the numbers ten times a second while `clients` are silent and one sends a large body."""
    page, sent = Served(), [0]
    silent: list[socket.socket] = []
    try:
        quiet = sorted(page.ask("/api/status")[1] for _ in range(20))
        before = page.resident_mib()
        silent += [socket.create_connection(("127.0.0.1", page.port), timeout=60) for _ in range(clients)]
        bodies = threading.Thread(target=flood, args=("127.0.0.1", page.port, body_mib, page.token, sent))
        bodies.start()
        until, answers = time.monotonic() + seconds, []
        while time.monotonic() < until:
            answers += [page.ask("/api/status"), page.ask("/healthz")]
            time.sleep(0.1)
        bodies.join(timeout=60)
        grown = page.resident_mib() - before
    finally:
        for client in silent:
            client.close()
        page.close()
    slowest = max(took for _, took in answers)
    return {
        "silent_clients": clients,
        "body_mib": body_mib,
        "body_mib_taken": sent[0],
        "requests": len(answers),
        "statuses": sorted({status for status, _ in answers}),
        "slowest_s": round(slowest, 3),
        "slowest_s_of_20_before": round(quiet[-1], 3),
        "memory_grown_mib": round(grown, 2),
        "passed": slowest < 1.0 and grown < 10 and {status for status, _ in answers} == {200},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--body-mib", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    report = soak_page(args.clients, args.body_mib, args.seconds)
    return told(report, report["passed"])


if __name__ == "__main__":
    sys.exit(main())
