"""`doctor`: what this machine can do."""

from __future__ import annotations

from tsss_edge.cli.options import Json, emit


def doctor(json: Json = None) -> None:
    """What this machine can do, what is missing, and the command that fixes it.

    Example: tsss-edge doctor
    """
    from tsss_edge.doctor import examine

    report = examine()
    emit(report, report.summary(), json)
