"""The architecture study: every variant is a network of ours, branches merge exactly, the chosen two keep their budgets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import architecture_study
from architecture_study import gflop
from edge_variants import VARIANTS, Branches, merge_branches

from tsss_edge.models import build_model


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_gives_stride_8_logits_in_channels_of_16(name: str) -> None:
    net = VARIANTS[name][1](3).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, 64, 96)).logits.shape == (1, 3, 8, 12)
    heads = (net.class_head, net.object_head)
    inner = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m not in heads]
    assert all(conv.out_channels % 16 == 0 for conv in inner)


def test_merged_branches_are_the_same_network() -> None:
    torch.manual_seed(0)
    net = VARIANTS["branches"][1](3)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
        norm.momentum = None
    x = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        net.train()(x)
        want = net.eval()(x).logits
        assert any(isinstance(m, Branches) for m in net.modules())
        got = merge_branches(net)(x).logits
    assert not any(isinstance(m, Branches) for m in net.modules())
    torch.testing.assert_close(got, want, atol=1e-4 * want.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("arch", "budget"), [("edge-s", 4.0), ("edge-m", 11.0)])
def test_networks_keep_their_budgets(arch: str, budget: float) -> None:
    """Design section 3: 2 x multiply-adds at 512x512 with 21 classes. Half the budget would be left unused."""
    assert budget / 2 < gflop(build_model(arch, num_classes=21, objectness=False).eval()) <= budget


def test_page_of_known_numbers(tmp_path: Path) -> None:
    known = {"miou": 60.04, "gflop": 9.477, "parameters": 3_894_262, "best_ms": 3.02, "p50_ms": 3.11, "rtx": "builds"}
    architecture_study.remember(tmp_path, "base", **known, miou_pytorch=60.0, miou_int8=59.75)
    architecture_study.remember(tmp_path, "small", gflop=3.331)
    (tmp_path / "machine.json").write_text("{}")
    architecture_study.page(tmp_path, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| base | edge-m | 60.0 | 0.25 | 9.48 | 3.89 | 3.0 | 3.1 | builds |" in text
    assert "| small | width: edge-s | - | - | 3.33 | - | - | - | - |" in text
    assert json.loads((tmp_path / "page.json").read_text())["variants"]["small"] == {"gflop": 3.331}
