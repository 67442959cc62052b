"""D that judges quality: the errors it learns from, that it learns to see them, and that it weighs labels of weak pictures alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tsss_edge.config import TrainConfig
from tsss_edge.train.judge import HEARD_FROM, QualityJudge, corrupted, overlap
from tsss_edge.train.loader import Batch
from tsss_edge.train.loop import Moment
from tsss_edge.train.pnet import ClassStep, Switches
from tsss_edge.train.start import fresh_net

CONFIG = TrainConfig(size_hw=(64, 64), batch=4, threads=1, amp=False)


def squares(count: int, *, side: int = 6, grid: int = 16, classes: int = 4) -> Tensor:
    """Shares of `count` labellings: a square of category 1 on background, and an unknown border."""
    shares = torch.zeros(count, classes, grid, grid)
    shares[:, 0] = 1
    shares[:, 0, 5 : 5 + side, 5 : 5 + side] = 0
    shares[:, 1, 5 : 5 + side, 5 : 5 + side] = 1
    shares[..., 0] = 0
    return shares


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_errors_change_labels_and_leave_what_is_unknown() -> None:
    """Over many draws all three kinds occur: an object smaller, larger, or of another category."""
    true = squares(60)
    wrong = corrupted(true, drawn())
    torch.testing.assert_close(wrong.sum(dim=1), true.sum(dim=1))  # as much is labelled, and nothing beyond
    assert bool((wrong >= 0).all()) and not (overlap(true, wrong).sum((1, 2, 3)) == true.sum((1, 2, 3))).any()
    size, before = wrong[:, 1:].sum((1, 2, 3)), 36.0
    renamed = wrong[:, 1].sum((1, 2)) == 0
    assert (size < before).any() and (size > before).any() and (renamed & (size == before)).any()
    assert torch.equal(wrong, corrupted(true, drawn()))  # of the counters alone


def test_it_learns_which_cells_are_wrong() -> None:
    """The picture shows where the object is, so that what is called object outside is wrong."""
    judge, true = QualityJudge(CONFIG), squares(8)
    image = true[:, 1:2].expand(-1, 3, -1, -1).contiguous()
    losses = [float(judge.learn(image, true, drawn(step)).detach()) for step in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    larger = squares(8, side=10)
    trust = judge.trust(image, larger)
    assert trust[..., 6:10, 6:10].mean() > trust[..., 12:15, 12:15].mean() + 0.1


@pytest.mark.parametrize("done", [HEARD_FROM, 1.0])
def test_it_weighs_weak_pictures_alone_and_only_when_it_has_learned(
    done: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def keep(logits: Tensor, shares: Tensor, *rest: object) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(shares)
        return logits.sum() * 0, {}

    monkeypatch.setattr("tsss_edge.train.pnet.category_losses", keep)
    step = ClassStep(
        fresh_net(CONFIG, num_classes=3),
        CONFIG,
        None,
        None,
        Switches(cutmix=False, judge=True),
        objectness=True,
        judge=QualityJudge(CONFIG),
    )
    masks = torch.ones(2, 64, 64, dtype=torch.uint8)
    batch = Batch(
        images=torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8),
        masks=masks,
        labels=torch.zeros(2, 3),
        weak=torch.tensor([False, True]),
        ids=("a", "b"),
    )
    _, parts = step(batch, Moment(step=0, done=done))
    strong, weak = seen[0][0, 1], seen[0][1, 1]
    assert "judge" in parts and bool((strong == 1).all())
    assert bool((weak == 1).all()) == (done == HEARD_FROM) and bool((weak > 0).all())
