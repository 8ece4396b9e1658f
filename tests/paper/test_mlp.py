"""The small networks of the dropout studies."""

import pytest
import torch

from paper.mlp import LoraMlp, Mlp, batches, dropout


def small_net(layers=None):
    g = torch.Generator().manual_seed(0)
    base = Mlp([12, 9, 7, 5], g)
    net = LoraMlp(base, 3, g, layers)
    with torch.no_grad():
        for B in net.B.values():
            B.normal_(generator=g)
    return net, torch.randn(6, 12, generator=g), torch.arange(6) % 5


def test_dropout_keeps_the_mean() -> None:
    x = torch.ones(200_000)
    kept = dropout(x, 0.3, torch.Generator().manual_seed(5))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert float(kept.mean()) == pytest.approx(1, abs=4 * (0.3 / 0.7 / 200_000) ** 0.5)


def test_batches_are_whole_epochs() -> None:
    order = batches(10, 3, 7, torch.Generator().manual_seed(0))
    assert [len(b) for b in order] == [3] * 7
    assert len(set(torch.cat(order[:3]).tolist())) == 9
