"""Everything a user can be told went wrong, and the exit code that goes with it.

TsssEdgeError              exit 1   something the user can fix
├── DataError              exit 1   a dataset, image, mask, list or video
├── ArtifactError          exit 1   a checkpoint, ONNX file, engine, record or calibration table
├── BusyError              exit 1   another process writes the same thing
├── GateError              exit 3   an accuracy gate failed
└── UnavailableError       exit 4   this machine (or this version) cannot do it

Anything else that reaches the command line is a fault of ours: exit 70, one line, `--debug` for the traceback.

A message says what was expected, what was got and what to do, in one line. `ValueError` stays for a wrong argument
from code, `assert` for our own invariants.
"""

from __future__ import annotations

import re
from typing import ClassVar

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_GATE = 3
EXIT_UNAVAILABLE = 4
EXIT_INTERNAL = 70  # of sysexits.h: a fault of ours


_LOGIN = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s:@?#]*):[^\s/?#]*@")
_SECRET = re.compile(
    r"([?&;][\w.%-]*(?:pass?|pwd|token|secret|auth|key|sig|credential)[\w.%-]*=)[^&\s#;'\"]+", re.IGNORECASE
)
_IN_PATH = re.compile(  # of DVRs: /user=admin_password=secret_channel=1.sdp
    r"((?<=[/_])(?:pass|password|passwd|pwd)=).*?(?=_[a-z]+=|[/?&\s#;'\"]|$)", re.IGNORECASE
)


def masked(text: str) -> str:
    """`text` with `***` in place of the passwords and tokens of the addresses in it: every message of ours goes through here."""
    if "://" not in text and "?" not in text:
        return text
    return _IN_PATH.sub(r"\1***", _SECRET.sub(r"\1***", _LOGIN.sub(r"\1:***@", text)))


class TsssEdgeError(Exception):
    """Base of every error that is shown to a user as one line without a traceback."""

    exit_code: ClassVar[int] = EXIT_ERROR

    def __str__(self) -> str:
        return masked(super().__str__())


class DataError(TsssEdgeError):
    """A dataset, image, mask, list or video is not what it should be."""


class ArtifactError(TsssEdgeError):
    """A checkpoint, ONNX file, engine, record or calibration table is not what it should be."""


class BusyError(TsssEdgeError):
    """Another process writes the same run folder, engine or recording."""


class GateError(TsssEdgeError):
    """An accuracy gate failed."""

    exit_code = EXIT_GATE


class UnavailableError(TsssEdgeError):
    """This machine, or this version of the toolkit, cannot do what was asked."""

    exit_code = EXIT_UNAVAILABLE
