"""What the discriminator sees, and that it can tell whole objects from ragged ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tsss_edge.models.discriminator import OBJECTS_SEEN, Discriminator, structure_of


def test_structure_does_not_depend_on_which_category() -> None:
    torch.manual_seed(0)
    probabilities = torch.randn(2, 6, 4, 4).softmax(1)
    renamed = probabilities[:, [0, 3, 5, 1, 2, 4]]
    torch.testing.assert_close(structure_of(probabilities), structure_of(renamed), atol=0, rtol=0)


def test_structure_is_background_then_the_largest_objects() -> None:
    probabilities = torch.zeros(1, 5, 2, 2)
    for channel, value in enumerate((0.4, 0.1, 0.3, 0.0, 0.2)):
        probabilities[:, channel] = value
    seen = structure_of(probabilities).mean((2, 3))[0]
    torch.testing.assert_close(seen, torch.tensor([0.4, 0.3, 0.2, 0.1]))


def test_few_categories_are_padded() -> None:
    assert structure_of(torch.rand(1, 2, 4, 4)).shape == (1, 1 + OBJECTS_SEEN, 4, 4)


def test_it_learns_to_tell_blocks_from_noise() -> None:
    torch.manual_seed(0)
    net = Discriminator()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.99))
    block = torch.zeros(4, 3, 8, 8)
    block[:, 0], block[:, 1, 2:6, 2:6] = 1, 1
    block[:, 0, 2:6, 2:6] = 0
    target = torch.tensor([1.0] * 4 + [0.0] * 4)[:, None, None, None]
    image = torch.zeros(8, 3, 8, 8)
    for _ in range(60):
        score = net(image, torch.cat([block, torch.rand(4, 3, 8, 8).softmax(1)]))
        loss = F.binary_cross_entropy_with_logits(score, target.expand_as(score))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2  # chance is ln 2 = 0.69


def test_spectral_norm_bounds_the_slope() -> None:
    torch.manual_seed(0)
    net = Discriminator().eval()
    a, b = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    image = torch.zeros(1, 3, 8, 8)
    # Four layers whose matrices have norm about 1; a 3x3 convolution can exceed its matrix's norm by at most 3 (9 taps).
    change = (net(image, a) - net(image, b)).norm() / (a - b).norm()
    assert change < 27
