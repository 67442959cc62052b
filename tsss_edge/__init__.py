"""tsss-edge: transferable semi-supervised segmentation, from labels to a live, accuracy-proven engine at the edge."""

__version__ = "0.1.0"
