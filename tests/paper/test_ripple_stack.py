"""ReLU stacks with adapters: matched learning rates and no interaction for a single layer."""

import pytest
import torch
import torch.nn.functional as F

from paper.ripple_stack import Stack


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_the_first_step_moves_every_depth_alike(depth, normed) -> None:
    g = torch.Generator().manual_seed(0)
    net = Stack(16, depth, normed, g)
    net.adapt(2, 2.0, g)
    x, y = torch.randn(40, 784, generator=g), torch.arange(40) % 10
    lr = net.matched_rate(x, y, 0.02)
    before = net.hidden(x).detach()
    net.step(F.cross_entropy(net.head(net.hidden(x)), y), lr)
    moved = float((net.hidden(x).detach() - before).norm() / before.norm())
    assert moved == pytest.approx(0.02, rel=0.25)  # first order in the rate


def test_one_layer_alone_has_no_interaction() -> None:
    g = torch.Generator().manual_seed(0)
    net = Stack(16, 2, True, g)
    net.adapt(2, 2.0, g)
    with torch.no_grad():
        net.B[1].normal_(generator=g)
    x = torch.randn(5, 784, generator=g)
    torch.testing.assert_close(net.hidden(x), net.hidden(x, {1}))
    torch.testing.assert_close(net.hidden(x, set()), net.hidden(x, {0}))
