"""The live page: `open_web` starts it and gives the sink that feeds it."""

from __future__ import annotations

from tsss_edge.stream.web.server import WebSink, open_web, parse_bind

__all__ = ["WebSink", "open_web", "parse_bind"]
