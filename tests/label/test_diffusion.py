"""Self-diffusion against answers worked out by hand, and against plain iteration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from tsss_edge.label.diffusion import DiffusionConfig, affinity, diffuse, neighbours, row_normalised


def test_diffuse_on_a_chain_of_three_has_the_hand_made_answer() -> None:
    # 0 - 1 - 2, weights 1; P = [[0,1,0],[.5,0,.5],[0,1,0]]; seed on 0; a = 1/2:
    # x0 = x1/2 + 1/2, x1 = (x0+x2)/4, x2 = x1/2  =>  x1 = 1/6, x0 = 7/12, x2 = 1/12.
    chain = row_normalised(csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32)))
    result = diffuse(chain, np.array([[1], [0], [0]], np.float32), 0.5)
    np.testing.assert_allclose(result[:, 0], [7 / 12, 1 / 6, 1 / 12], rtol=1e-6)  # float32 of a float64 solution


def test_diffuse_equals_iteration_to_the_fixed_point() -> None:
    rng = np.random.default_rng(0)
    transition = row_normalised(csr_array(rng.random((12, 12), np.float32)))
    seeds = rng.random((12, 3)).astype(np.float32)
    walked = seeds
    for _ in range(200):
        walked = 0.8 * (transition @ walked) + 0.2 * seeds
    np.testing.assert_allclose(diffuse(transition, seeds, 0.8), walked, rtol=1e-5)


def test_diffuse_keeps_constants_and_refuses_alpha_one() -> None:
    transition = row_normalised(csr_array(np.ones((4, 4), np.float32)))
    np.testing.assert_allclose(diffuse(transition, np.full((4, 1), 0.3, np.float32), 0.9), 0.3, rtol=1e-6)
    with pytest.raises(ValueError, match="alpha"):
        diffuse(transition, np.ones((4, 1), np.float32), 1.0)


def test_neighbours_of_a_corner_and_of_the_middle() -> None:
    source, target, squared = neighbours(3, 3, 1)
    assert sorted(target[source == 0]) == [1, 3]
    assert sorted(target[source == 4]) == [1, 3, 5, 7]
    assert set(squared) == {1.0}


def test_affinity_rows_sum_to_one_and_stop_at_an_edge() -> None:
    features = np.zeros((2, 4, 6), np.float32)
    features[0, :, :3] = features[1, :, 3:] = 1  # two flat regions, orthogonal features
    colors = np.zeros((3, 4, 6), np.float32)
    transition = affinity(features, colors, DiffusionConfig(radius=1, feature_sigma=0.2)).toarray()
    np.testing.assert_allclose(transition.sum(1), 1, rtol=1e-5)
    left, same, across = 1 * 6 + 2, 1 * 6 + 1, 1 * 6 + 3
    # cosine distance 1 / sigma 0.2 = exp(-5) of what a like neighbour gets
    assert transition[left, across] == pytest.approx(transition[left, same] * np.exp(-5), rel=1e-4)


def test_row_normalised_refuses_a_node_without_neighbour() -> None:
    with pytest.raises(ValueError, match="neighbour"):
        row_normalised(csr_array(np.array([[0.0, 1.0], [0.0, 0.0]])))


def test_colour_and_nearness_can_be_left_out() -> None:
    """With features alone, cells of one kind are equally near however they are painted."""
    features = np.ones((2, 1, 3), np.float32)
    colors = np.zeros((3, 1, 3), np.float32)
    colors[:, 0, 2] = 1
    alone = DiffusionConfig(color_sigma=0, distance_sigma=0)
    assert affinity(features, colors, alone).toarray()[1].tolist() == pytest.approx([0.5, 0, 0.5])
    assert affinity(features, colors, DiffusionConfig()).toarray()[1, 0] > 0.99
