"""What D is told of each cell, with and without pictures that are mixed of two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tsss_edge.config import TrainConfig
from tsss_edge.train.duel import STRONG_TARGET, Duel, weak_share
from tsss_edge.train.loader import Batch
from tsss_edge.train.loop import Moment
from tsss_edge.train.pnet import ClassStep, Switches
from tsss_edge.train.start import fresh_net

CONFIG = TrainConfig(size_hw=(64, 64), batch=2, threads=1, amp=False)


class Recorder(Duel):
    """A duel that keeps what it was given."""

    def learn(self, image: Tensor, probabilities: Tensor, weak: Tensor) -> Tensor:
        self.image, self.weak = image, weak
        return super().learn(image, probabilities, weak)


def black_and_white() -> Batch:
    """A black strong picture and a white weak one."""
    images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    images[1] = 255
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    return Batch(
        images=images, masks=masks, labels=torch.zeros(2, 3), weak=torch.tensor([False, True]), ids=("black", "white")
    )


@pytest.mark.parametrize("cutmix", [False, True])
def test_a_pasted_rectangle_keeps_its_own_domain(cutmix: bool) -> None:
    """White cells come of the weak picture, wherever they were pasted; D's target says so cell by cell."""
    duel = Recorder(CONFIG)
    step = ClassStep(fresh_net(CONFIG, num_classes=3), CONFIG, None, duel, Switches(cutmix=cutmix), objectness=True)
    step(black_and_white(), Moment(step=3, done=0.5))
    torch.testing.assert_close(duel.weak, duel.image[:, :1], rtol=0, atol=0)
    mixed = 0 < duel.weak[0].mean() < 1
    assert bool(mixed) == cutmix


def test_a_cell_of_d_that_two_pictures_share_gets_a_target_between() -> None:
    weak = torch.zeros(1, 1, 4, 4)
    weak[..., 1:] = 1  # the first column strong
    share = weak_share(weak, torch.zeros(1, 1, 2, 2))
    assert share[0, 0].tolist() == [[0.5, 1.0], [0.5, 1.0]]
    assert (STRONG_TARGET * (1 - share))[0, 0, 0].tolist() == pytest.approx([STRONG_TARGET / 2, 0.0])


def test_s_is_asked_to_fool_d_in_weak_cells_alone() -> None:
    """The loss does not change with what S predicts far away from every weak cell."""
    torch.manual_seed(0)
    duel = Duel(CONFIG)
    duel.net.eval()  # spectral norm goes on with every call in training mode
    image, weak = torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    weak[..., :4, :4] = 1
    probabilities = torch.full((1, 3, 32, 32), 1 / 3)
    near = duel.fool(image, probabilities, weak)
    far = image.clone()
    far[..., 24:, 24:] = 1 - far[..., 24:, 24:]
    assert duel.fool(far, probabilities, weak) == near
    assert duel.fool(image, probabilities, torch.zeros_like(weak)) == 0
