"""What writes H.264 here: a hardware encoder where one opens, else x264 with a preset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av

from tsss_edge.errors import UnavailableError
from tsss_edge.stream.av_reader import FAULTS

Preset = Literal["auto", "hardware", "ultrafast", "superfast", "veryfast"]

# zerolatency: no frame waits inside the encoder. One thread: the loop's other threads have the other cores.
X264 = {"tune": "zerolatency", "crf": "21"}
# FFmpeg's names of hardware encoders that take planes from memory, and their fast settings; the first that opens is taken.
HARDWARE: dict[str, dict[str, str]] = {
    "h264_nvenc": {"preset": "p2", "tune": "ull", "rc": "vbr", "cq": "21", "zerolatency": "1", "delay": "0"},
    "h264_v4l2m2m": {},
}


@dataclass(frozen=True)
class Encoder:
    """FFmpeg's name and options of an encoder. `why`: what was chosen and the reason, for one line of output."""

    codec: str
    options: dict[str, str]
    why: str


def h264_encoder(preset: Preset = "auto", opens: Callable[[str], bool] | None = None) -> Encoder:
    """The encoder for `preset`. "auto" is hardware, else x264 ultrafast: the loop needs the cores more than the disk needs the
    bits (measured in docs/results/front.md).

    Raises: UnavailableError: "hardware", and none opens.
    """
    if preset in ("auto", "hardware"):
        found = next((codec for codec in HARDWARE if (opens or encoder_opens)(codec)), None)
        if found is not None:
            return Encoder(found, HARDWARE[found], f"{found}, the hardware encoder that opens here")
        if preset == "hardware":
            raise UnavailableError(
                f"no hardware encoder opens here (tried {', '.join(HARDWARE)}); leave --encode away for x264"
            )
    name = "ultrafast" if preset == "auto" else preset
    why = "no hardware encoder opens here" if preset == "auto" else "as --encode says"
    return Encoder("libx264", {"preset": name, **X264}, f"x264 {name}, {why}")


def encoder_opens(codec: str) -> bool:
    """Whether FFmpeg has the encoder and the machine what it needs: a small picture's encoder is opened and thrown away."""
    try:
        context: Any = av.CodecContext.create(codec, "w")
        context.width, context.height, context.pix_fmt = 256, 256, "yuv420p"
        context.time_base = Fraction(1, 30)
        context.open()
    except (*FAULTS, LookupError):
        return False
    return True
