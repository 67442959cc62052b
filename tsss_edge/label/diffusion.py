"""Class activation seeds on a grid -> the same, spread along what looks alike (self-diffusion).

A <- a P A + (1-a) A0 is solved for its fixed point A = (1-a) (I - a P)^-1 A0, one sparse linear system for all categories. Our
reading of the paper: the random walk and its restart. Ours: the affinity P, which multiplies likeness of features and colour, and
nearness.
"""
# Letters: G grid cells (h*w), C channel, K category.

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, dia_array, eye_array
from scipy.sparse.linalg import splu

from tsss_edge.artifacts import Struct

Floats = NDArray[np.float32]


class DiffusionConfig(Struct, frozen=True):
    """How far and along what the seeds spread."""

    alpha: float = 0.8  # share that comes from the neighbours; 1 would forget the seeds
    radius: int = 3  # cells
    feature_sigma: float = 0.5  # of the cosine distance, 0-2
    color_sigma: float = 0.15  # of the RGB distance, value / 255; 0 leaves colour out
    distance_sigma: float = 2.0  # cells; 0 leaves nearness out, but for the radius


@lru_cache(maxsize=16)
def neighbours(height: int, width: int, radius: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Pairs (i, j) of different cells at most `radius` apart (Euclid) and their squared distance, sorted by i."""
    rows, columns = np.mgrid[0:height, 0:width].reshape(2, -1)
    reach = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1).T
    reach = reach[((reach**2).sum(1) <= radius**2) & (reach != 0).any(1)]
    r, c = rows[:, None] + reach[:, 0], columns[:, None] + reach[:, 1]
    inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
    source = np.broadcast_to(np.arange(height * width)[:, None], inside.shape)[inside]
    squared = np.broadcast_to((reach**2).sum(1), inside.shape)[inside]
    return source, (r * width + c)[inside], squared.astype(np.float32)


def affinity(features: Floats, colors: Floats, config: DiffusionConfig) -> csr_array:
    """Row-normalised affinity P of a grid.

    Args:    features: (C,h,w), any scale. colors: (3,h,w), 0-1.
    Returns: (G,G) CSR, rows summing to 1.
    """
    _, height, width = features.shape
    i, j, squared = neighbours(height, width, config.radius)
    unit = features.reshape(len(features), -1)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=0), 1e-6)
    flat = colors.reshape(3, -1)
    cosine = 1 - np.einsum("ce,ce->e", unit[:, i], unit[:, j])
    color = ((flat[:, i] - flat[:, j]) ** 2).sum(0)
    exponent = cosine / config.feature_sigma
    for distance, sigma in ((color, config.color_sigma), (squared, config.distance_sigma)):
        if sigma:
            exponent = exponent + distance / (2 * sigma**2)
    weights = np.exp(-np.minimum(exponent, 30.0))  # never 0: an isolated cell still has neighbours
    return row_normalised(csr_array((weights, (i, j)), shape=(height * width,) * 2))


def row_normalised(weights: csr_array) -> csr_array:
    """Each row divided by its sum. Raises: ValueError: a row without weight."""
    sums = np.asarray(weights.sum(axis=1)).ravel()
    if (sums <= 0).any():
        raise ValueError("every node of the graph needs a neighbour")
    return csr_array(dia_array((1 / sums[None], [0]), shape=weights.shape) @ weights)


def diffuse(transition: csr_array, seeds: Floats, alpha: float) -> Floats:
    """Fixed point of A = alpha * P A + (1-alpha) * A0: (G,G) row-stochastic, (G,K) -> (G,K) float32.

    Raises: ValueError: alpha outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha {alpha}: expected 0 <= alpha < 1")
    system = (eye_array(transition.shape[0], format="csc") - alpha * transition).tocsc()
    return np.asarray(splu(system).solve((1 - alpha) * seeds.astype(np.float64)), np.float32)
