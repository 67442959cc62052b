"""An RTSP camera of one colour, for the tests; runs under the system's Python, where GStreamer's bindings are.

Usage: /usr/bin/python3 rtsp_server.py PORT RRGGBB WIDTHxHEIGHT [FILE.h264] [FPS]

With a file (not `-`) it also takes a stream at /record (RTSP's RECORD) and writes what comes as H.264.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main(port: str, colour: str, size: str, record: str = "", fps: str = "25") -> None:
    width, height = size.split("x")
    Gst.init(None)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_shared(True)
    factory.set_launch(
        f"( videotestsrc is-live=true pattern=solid-color foreground-color=0xff{colour} ! "
        f"video/x-raw,width={width},height={height},framerate={fps}/1 ! videoconvert ! "
        "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 threads=1 ! rtph264pay name=pay0 pt=96 )"
    )
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/cam", factory)
    if record not in ("", "-"):
        taker = GstRtspServer.RTSPMediaFactory()
        taker.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
        taker.set_launch(
            "( rtph264depay name=depay0 ! video/x-h264,stream-format=byte-stream,alignment=au ! "
            f"filesink location={record} buffer-mode=unbuffered )"
        )
        server.get_mount_points().add_factory("/record", taker)
    assert server.attach(None), "port in use"
    print("ready", flush=True)
    GLib.MainLoop().run()


main(*sys.argv[1:])
