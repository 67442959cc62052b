"""A network of K classes -> one of K+1 whose new row already finds its category, before the first step of training.

A row that starts at nothing needs many epochs to be heard among rows that took theirs. Here it is fitted first and alone: a
logistic regression, a few seconds on features that exist. Close to weight imprinting (Qi, Brown and Lowe, CVPR 2018, arXiv
1712.07136), which takes the mean feature; the regression also weighs what the old rows say of the same cells.
"""
# Letters: N cells, C features.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tsss_edge.config import TrainConfig
from tsss_edge.frozen import keep_features
from tsss_edge.models import SegNet, build_model, network_input, pick_device
from tsss_edge.train.loader import Samples
from tsss_edge.train.losses import cell_shares

LOW_BIAS = -5.0  # logit of a category that was never seen
STEPS, RIDGE = 50, 1e-4  # of L-BFGS; weight of the squared row beside the loss
EVERY = 3  # cells down and across, of which one is taken


def widened(net: SegNet, config: TrainConfig, num_classes: int) -> SegNet:
    """The same network with `num_classes` classes; an added one has no weights and a low bias: it is predicted nowhere yet."""
    wide = build_model(config.arch, num_classes=num_classes)
    state = net.state_dict()
    for name, tensor in wide.state_dict().items():
        if tensor.shape != state[name].shape:
            rows = torch.full_like(tensor, LOW_BIAS if tensor.ndim == 1 else 0.0)
            rows[: len(state[name])] = state[name]
            state[name] = rows
    wide.load_state_dict(state)
    return wide


def fit_new_row(net: SegNet, samples: Samples, config: TrainConfig) -> None:
    """Give the last row of the class head the weights that explain an epoch's labels best while all others stand still.

    Of each cell the question is: the new category, or what the old rows say? The answer's logit is row * features + bias, less the
    log-sum-exp of the old rows. That is convex in the row, so no learning rate is to be chosen. Without a cell of the new category
    nothing changes.
    """
    assert net.class_head is not None
    features, rest, target, weight = _cells(net, samples, config)
    if not bool(target.any()):
        return
    row = torch.zeros(features.shape[1] + 1, device=features.device, requires_grad=True)
    solver = torch.optim.LBFGS([row], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logit = features @ row[:-1] + row[-1] - rest
        lost = F.binary_cross_entropy_with_logits(logit, target, weight) + RIDGE * row[:-1].square().sum()
        lost.backward()  # type: ignore[no-untyped-call]
        return lost

    solver.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        net.class_head.weight[-1] = row[:-1, None, None]
        assert net.class_head.bias is not None
        net.class_head.bias[-1] = row[-1]


@torch.no_grad()
def _cells(net: SegNet, samples: Samples, config: TrainConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the labelled cells of an epoch: features (N,C), log-sum-exp of the old logits, share of the new category among the
    labelled pixels, and share of labelled pixels, (N,) each."""
    device = pick_device(config.device)
    net.eval().to(device)
    keep_features(net, config)
    parts = []
    for batch in samples.batches(0):
        found = net.features(network_input(batch.images.to(device), config.preprocess.scale))[..., ::EVERY, ::EVERY]
        assert net.class_head is not None
        rest = net.class_head(found)[:, :-1].logsumexp(dim=1)
        shares = cell_shares(batch.masks.to(device), batch.labels.shape[1], 8)[..., ::EVERY, ::EVERY]
        known = shares.sum(dim=1)
        seen = known > 0
        parts.append((found.movedim(1, -1)[seen], rest[seen], (shares[:, -1] / known)[seen], known[seen]))
    features, rest, target, weight = (torch.cat(column) for column in zip(*parts, strict=True))
    return features, rest, target, weight
