"""The scales of all layers at once when a backward pass begins: the same gradients, of the factors as they are then."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from alloralib import fast_paths, hold_row_scales
from alloralib.ops import ahead, scale
from alloralib.ops.linear import LinearLayer, lora_linear, lora_linears

from .test_held import language_model, passes


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """How many layers each taking of scales was of."""
    counts: list[int] = []
    right = scale.row_scales
    monkeypatch.setattr(ahead, "row_scales", lambda pairs, eta: (counts.append(len(pairs)), right(pairs, eta))[1])
    return counts


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    ahead._coming.clear()  # of graphs that other tests keep
    yield
    gc.collect()
    assert not list(ahead._coming)


def layer(n1: int, n2: int, eta: float = 2.0, dtype: torch.dtype = torch.float32) -> LinearLayer:
    A, B = (nn.Parameter(torch.randn(*shape, dtype=dtype)) for shape in ((3, n2), (n1, 3)))
    return LinearLayer(torch.randn(n1, n2), None, A, B, eta)


def through(x: Tensor, *layers: LinearLayer) -> Tensor:
    for part in layers:
        x = lora_linears(x, [part])[0]
    return x.square().sum()


def gradients(*layers: LinearLayer) -> list[Tensor]:
    grads = [factor.grad for part in layers for factor in (part.A, part.B)]
    assert all(grad is not None for grad in grads)
    for part in layers:
        part.A.grad = part.B.grad = None
    return grads  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("grouped", [True, False])
def test_gradients_of_a_model_are_the_same_to_the_bit(grouped, taken) -> None:
    model = language_model()
    with fast_paths(ahead=False, grouped=grouped):
        expected = passes(model)
    alone = list(taken)
    taken.clear()
    with fast_paths(grouped=grouped):
        found = passes(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert set(alone) == {1}
    # the embedding's node is another one, whose scale is its own
    assert max(taken) == sum(alone) - 1
    assert len(taken) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_gradient_checkpointing(reentrant, taken) -> None:
    model = language_model().train()
    expected = passes(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    taken.clear()
    found = passes(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert max(taken) > 1  # those of a block


def test_a_write_past_the_counters_between_two_passes_is_seen(monkeypatch) -> None:
    """Both graphs are there when the first pass takes the scales of all; the second must not use what was taken then."""

    def second_pass() -> list[Tensor]:
        torch.manual_seed(0)
        layers = layer(5, 4), layer(6, 5)
        first, second = through(torch.randn(2, 4), *layers), through(torch.randn(2, 4), *layers)
        first.backward()
        for part in layers:
            part.B.data.mul_(3)
            part.A.grad = part.B.grad = None
        second.backward()
        return gradients(*layers)

    with fast_paths(ahead=False):
        expected = second_pass()
    assert all(torch.equal(a, b) for a, b in zip(second_pass(), expected, strict=True))
    monkeypatch.setattr(ahead, "_this_pass", lambda: 0)
    assert not all(torch.equal(a, b) for a, b in zip(second_pass(), expected, strict=True))


def test_a_graph_may_be_gone_through_twice(taken) -> None:
    layers = layer(5, 4), layer(6, 5)
    loss = through(torch.randn(2, 4), *layers)
    loss.backward(retain_graph=True)
    first = gradients(*layers)
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(*layers), first, strict=True))
    assert taken == [2, 1, 1]  # what was used is forgotten


@pytest.mark.parametrize("held", [True, False])
def test_who_keeps_the_losses_does_not_slow_the_next_passes_down(held, taken) -> None:
    layers, kept = (layer(5, 4), layer(6, 5)), []
    with hold_row_scales() if held else nullcontext():
        for _ in range(3):
            kept.append(through(torch.randn(2, 4), *layers))
            kept[-1].backward()
            assert not list(ahead._coming)
    assert taken == ([2] if held else [2, 2, 2])


def test_layers_of_another_eta_or_dtype_wait_for_their_own(taken) -> None:
    layers = layer(5, 4), layer(6, 5, eta=1.0), layer(3, 6), layer(4, 3, dtype=torch.float64)
    x = torch.randn(2, 4)
    through(x, *layers).backward()
    found = gradients(*layers)
    assert sorted(taken) == [1, 1, 2]
    with fast_paths(ahead=False):
        through(x, *layers).backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(*layers), found, strict=True))


def test_memory_that_was_freed_and_gathered_again_is_read_where_it_is(taken) -> None:
    """As DeepSpeed does: a parameter's data are away between its forward and its backward pass."""
    layers = layer(5, 4), layer(6, 5)
    x = torch.randn(2, 4)
    through(x, *layers).backward()
    expected = gradients(*layers)
    taken.clear()
    loss = through(x, *layers)
    away = layers[0].A, layers[0].A.data
    away[0].data = torch.empty(0)

    def gather(grad: Tensor) -> None:
        away[0].data = away[1].clone()

    layers[1].B.register_hook(gather)  # whose backward pass comes first, and finds the other away
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(*layers), expected, strict=True))
    assert taken == [1, 1]


def test_what_was_announced_goes_with_its_graph() -> None:
    part = layer(5, 4)
    known = weakref.ref(part.A)
    with torch.no_grad():
        lora_linear(torch.randn(2, 4), part.weight, None, part.A, part.B)
    assert not list(ahead._coming)
    y = lora_linear(torch.randn(2, 4), part.weight, None, part.A, part.B)
    assert len(ahead._coming) == 1
    del y, part
    gc.collect()
    assert not list(ahead._coming)
    assert known() is None


def test_factors_that_are_no_parameters_are_not_kept(taken) -> None:
    part = layer(5, 4)
    masked = part._replace(B=part.B * 1)
    loss = through(torch.randn(2, 4), masked)
    assert not list(ahead._coming)
    loss.backward()
    assert taken == [1]
