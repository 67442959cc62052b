"""Two small networks of TensorFlow, NHWC: a SavedModel and a .tflite, and both as ONNX files made by tf2onnx. Random weights, seed 0.

Needs an environment of its own: pip install tensorflow-cpu==2.21.0 tf2onnx==1.17.0
    python scripts/foreign_tensorflow.py OUT                                                # 320x256, for docs/results/own-model.md
    python scripts/foreign_tensorflow.py tests/export/samples --size 64 96 --channels 8 12 16    # what the tests import

`answers.npz` holds one picture and what TensorFlow and the TensorFlow Lite interpreter say of it.
"""

# mypy: ignore-errors
from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf

L = tf.keras.layers


def network(
    size_hw: tuple[int, int], channels: tuple[int, ...], classes: int, activation: str | None
) -> tf.keras.Model:
    """Three strided stages of plain and depthwise convolutions, a skip, bilinear upsampling: stride 4."""
    x = picture = L.Input((*size_hw, 3), batch_size=1)
    skips = []
    for count in channels:
        for layer in (L.Conv2D(count, 3, 2, padding="same", use_bias=False), L.DepthwiseConv2D(3, padding="same")):
            x = L.ReLU(6.0)(L.BatchNormalization()(layer(x)))
        skips.append(x)
    x = L.Conv2D(channels[1], 1, activation="relu")(x)
    x = L.Concatenate()([L.UpSampling2D(2, interpolation="bilinear")(x), skips[1]])
    x = L.Conv2D(channels[1], 3, padding="same", activation="relu")(x)
    return tf.keras.Model(picture, L.Conv2D(classes, 1, activation=activation)(x))


def settled(net: tf.keras.Model, size_hw: tuple[int, int]) -> tf.keras.Model:
    """The network after its batch norms saw noise, so that random weights keep signals in range."""
    random = np.random.default_rng(0)
    for layer in net.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(8):
        net(random.random((1, *size_hw, 3), np.float32), training=True)
    return net


def to_onnx(out: Path, *source: str) -> None:
    command = [sys.executable, "-m", "tf2onnx.convert", *source, "--output", str(out), "--opset", "15"]
    subprocess.run(command, check=True)


def lite_answer(file: Path, x: np.ndarray) -> np.ndarray:
    interpreter = tf.lite.Interpreter(str(file))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320), metavar=("H", "W"))
    parser.add_argument("--channels", type=int, nargs=3, default=(16, 32, 64))
    args = parser.parse_args()
    out, size_hw = args.out, tuple(args.size)
    out.mkdir(parents=True, exist_ok=True)
    tf.keras.utils.set_random_seed(0)
    saved = settled(network(size_hw, args.channels, 11, "softmax"), size_hw)
    lite = settled(network(size_hw, args.channels, 2, None), size_hw)
    saved.export(str(out / "saved_model"))
    (out / "net.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(lite).convert())
    to_onnx(out / "tf-saved-model.onnx", "--saved-model", str(out / "saved_model"))
    to_onnx(out / "tflite.onnx", "--tflite", str(out / "net.tflite"))
    image = np.random.default_rng(1).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    x = image[None].astype(np.float32) / 255
    answers = {"saved_model": np.asarray(saved(x, training=False)), "tflite": lite_answer(out / "net.tflite", x)}
    np.savez_compressed(out / "answers.npz", image=image, **answers)
    with zipfile.ZipFile(out / "saved_model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((out / "saved_model").rglob("*")):
            archive.write(path, path.relative_to(out))


if __name__ == "__main__":
    main()
