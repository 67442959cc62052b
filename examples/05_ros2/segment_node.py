"""A ROS 2 node: images in, masks and overlays out. Parameter `engine`: a file that `tsss_edge.load` takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

import tsss_edge

# Best effort hears drivers of either kind (REP 2003); an older picture than the newest is worth nothing.
NEWEST = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)


class SegmentNode(Node):  # type: ignore[misc]
    """`image` -> `masks` (mono8, class ids; 255: not seen) and `overlay` (rgb8)."""

    def __init__(self) -> None:
        super().__init__("tsss_edge")
        self.declare_parameter("engine", "")
        self._model = tsss_edge.load(self.get_parameter("engine").value)
        self._masks = self.create_publisher(Image, "masks", 1)
        self._overlay = self.create_publisher(Image, "overlay", 1)
        self.create_subscription(Image, "image", self.segment, NEWEST)

    def segment(self, message: Any) -> None:
        """Answer one picture. One in another encoding is logged and passed over."""
        if message.encoding not in ("rgb8", "bgr8"):
            self.get_logger().error(f"encoding {message.encoding}: expected rgb8 or bgr8")
            return
        found = self._model(pixels_of(message))
        self._masks.publish(message_of(found.labels, "mono8", message.header))
        if self._overlay.get_subscription_count():
            self._overlay.publish(message_of(found.overlay(), "rgb8", message.header))

    def destroy_node(self) -> None:
        """Free the engine too."""
        self._model.close()
        super().destroy_node()


def pixels_of(message: Any) -> NDArray[np.uint8]:
    """(H,W,3) uint8 RGB; rows may be padded (`step`)."""
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
    return np.ascontiguousarray(pixels if message.encoding == "rgb8" else pixels[..., ::-1])


def message_of(pixels: NDArray[np.uint8], encoding: str, header: Any) -> Any:
    """(H,W) or (H,W,3) uint8 -> sensor_msgs/Image."""
    message = Image()
    message.header, message.encoding = header, encoding
    message.height, message.width = pixels.shape[:2]
    message.step = pixels.strides[0]
    message.data = pixels.tobytes()
    return message


def main() -> None:
    rclpy.init()
    node = SegmentNode()
    try:
        rclpy.spin(node)
    finally:
        node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
