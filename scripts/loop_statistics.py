"""Which statistic tells drift: Kolmogorov-Smirnov, population stability index, CUSUM -> a table of false alarms and delays.

python scripts/loop_statistics.py fused.onnx --data voc_photos --other objects_source --other ccp_clothing --json out.json

The network has seen all categories, so nothing here is the rehearsal's claim. Half of the validation pictures make the profile, streams
are drawn by lot from the other half. A change: from then on half of the frames are of another set, or all are dark or blurred.
Limits of PSI and CUSUM are set on streams drawn from the profile's own half, so that none of them raises an alarm there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from tsss_edge.backends import open_backend
from tsss_edge.data.voc import VocDataset
from tsss_edge.field.drift import ALPHA, RAISE_AFTER, STEP, WINDOW, distances, limit
from tsss_edge.field.figures import Meter, Values
from tsss_edge.scoring import backend_answers

HOUR = 3600  # frames of a stream
BINS = 10
ALPHAS = (1e-5, 1e-4, 1e-3)  # beside the one in use
SLACK = 0.5  # CUSUM's allowance, in standard deviations
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (W,F) window, (N,F) profile -> (F,)


def figures(backend: object, images: list[np.ndarray]) -> np.ndarray:
    """(N,F) figures of pictures; `neighbours` is left out, for the order is by lot."""
    meter, rows = Meter(backend.classes), []  # type: ignore[attr-defined]
    for answer in backend_answers(backend, ((str(n), image) for n, image in enumerate(images))):  # type: ignore[arg-type]
        objects = answer.outputs["objectness"][0, 0] if "objectness" in answer.outputs else None
        rows.append(meter.measure(answer.outputs["logits"][0], objects, answer.labels, answer.placement))
    table = np.stack(rows)
    return np.delete(table, [3] if "objectness" in backend.outputs[-1].name else [2, 3], axis=1)  # type: ignore[attr-defined]


def smirnov(window: np.ndarray, profile: np.ndarray) -> np.ndarray:
    return np.maximum(*distances(window, np.sort(profile, axis=0))) / limit(len(window), len(profile))


def stability(window: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """PSI over bins at the profile's deciles; shares are kept above 1/1000."""
    scores = []
    for w, p in zip(window.T, profile.T, strict=True):
        edges = np.unique(np.quantile(p, np.linspace(0, 1, BINS + 1)[1:-1]))
        a, b = (np.bincount(np.searchsorted(edges, v), minlength=len(edges) + 1) / len(v) for v in (w, p))
        a, b = np.maximum(a, 1e-3), np.maximum(b, 1e-3)
        scores.append(float(((a - b) * np.log(a / b)).sum()))
    return np.array(scores)


def cusum_path(stream: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Largest two-sided CUSUM over all figures, at every STEP-th frame; it starts anew with each stream."""
    z = (stream - profile.mean(0)) / np.maximum(profile.std(0), 1e-3)
    up = down = np.zeros(z.shape[1])
    path = []
    for n, row in enumerate(z, start=1):
        up, down = np.maximum(0, up + row - SLACK), np.maximum(0, down - row - SLACK)
        if n % STEP == 0 and n >= WINDOW:
            path.append(max(up.max(), down.max()))
    return np.array(path)


def window_path(statistic: Statistic) -> Statistic:
    def path(stream: np.ndarray, profile: np.ndarray) -> np.ndarray:
        ends = range(WINDOW, len(stream) + 1, STEP)
        return np.array([statistic(stream[end - WINDOW : end], profile).max() for end in ends])

    return path


PATHS = {"kolmogorov-smirnov": window_path(smirnov), "psi": window_path(stability), "cusum": cusum_path}


def scaled_limit(name: str) -> float:
    """Of the distance over its limit at ALPHA: 1, or what another chance of a false alarm makes of it."""
    alpha = float(name.rpartition(" ")[2]) if "," in name else ALPHA
    return limit(1, 1, alpha) / limit(1, 1)


def first_alarm(path: np.ndarray, bound: float) -> int | None:
    """Frame at which `path` was over its bound RAISE_AFTER looks in a row."""
    over = np.convolve(path > bound, np.ones(RAISE_AFTER, int), "valid") == RAISE_AFTER
    return WINDOW + STEP * (int(over.argmax()) + RAISE_AFTER - 1) if over.any() else None


def read(root: Path, split: str, most: int) -> list[np.ndarray]:
    dataset = VocDataset.open(root)
    return [dataset.image(i) for i in dataset.ids(split)[:most]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--other", type=Path, action="append", default=[])
    parser.add_argument("--hours", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with open_backend(args.network, threads=1) as backend:
        images = read(args.data, "val", 10_000)
        profile, own = (figures(backend, images[start::2]) for start in (0, 1))
        changes = {root.name: figures(backend, read(root, "train", 150)) for root in args.other}
        changes["dark"] = figures(backend, [(image * 0.35).astype(np.uint8) for image in images[1::2]])
        changes["blurred"] = figures(backend, [cv2.GaussianBlur(image, (0, 0), 3) for image in images[1::2]])
    rng = np.random.default_rng(0)
    rows = {}
    for name in (*PATHS, *(f"kolmogorov-smirnov, alpha {alpha:g}" for alpha in ALPHAS)):
        path = PATHS[name.partition(",")[0]]
        tuned = max(path(draw(rng, profile, HOUR), profile).max() for _ in range(args.hours))
        bound = float(tuned) if name in ("psi", "cusum") else scaled_limit(name)
        alarms = [first_alarm(path(draw(rng, own, HOUR), profile), bound) for _ in range(args.hours)]
        delays = {}
        for change, table in changes.items():
            found = []
            for _ in range(20):
                after = draw(rng, table, 600)
                if change not in ("dark", "blurred"):
                    half = rng.random(600) < 0.5
                    after[half] = draw(rng, own, 600)[half]
                stream = np.concatenate([draw(rng, own, WINDOW), after])
                frame = first_alarm(path(stream, profile), bound)
                found.append(600.0 if frame is None else frame - WINDOW)
            delays[change] = float(np.median(found))
        rows[name] = {
            "limit": bound,
            "hours": args.hours,
            "hours_with_alarm": sum(a is not None for a in alarms),
            "delay": delays,
        }
        print(name, json.dumps(rows[name]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def draw(rng: np.random.Generator, table: np.ndarray, count: int) -> Values:
    """Rows by lot."""
    return table[rng.integers(0, len(table), count)]


if __name__ == "__main__":
    main()
