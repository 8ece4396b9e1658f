"""Cross-entropy in tiles against its slow twin: loss, gradient, and memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from alloralib.ops import cross_entropy as module
from alloralib.ops import matmul, reference
from alloralib.ops.cross_entropy import cross_entropy, linear_cross_entropy

N, D, V = 11, 5, 23


def problem(rows: int = N, dtype: torch.dtype = torch.float64, bias: bool = True):
    g = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, D, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=dtype)
    labels = torch.randint(V, (rows,), generator=g)
    return hidden, weight, torch.randn(V, generator=g, dtype=dtype) if bias else None, labels


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 4, N])
@pytest.mark.parametrize("entries", [1, 20, N * V - 1, N * V, None])
def test_loss_and_gradient_are_the_twins(entries: int | None, rows: int, bias: bool, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    hidden, weight, b, labels = problem(bias=bias)
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)  # a different gradient for every row's loss
    loss = linear_cross_entropy(hidden, weight, b, labels, entries=entries)
    expected = reference.cross_entropy(hidden, weight, b, labels)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss @ weights, hidden)
    (plain,) = torch.autograd.grad(expected @ weights, hidden)
    torch.testing.assert_close(grad, plain)


def test_gradcheck() -> None:
    hidden, weight, b, labels = problem()
    assert torch.autograd.gradcheck(lambda h: linear_cross_entropy(h, weight, b, labels, entries=40), hidden)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(linear_cross_entropy(hidden, weight, b, labels).sum(), hidden, create_graph=True)


def test_labels_with_probability_one_or_too_small_for_a_float() -> None:
    weight, hidden = torch.tensor([[1.0], [-1.0]]), torch.tensor([[300.0], [1e-4]], requires_grad=True)
    loss = linear_cross_entropy(hidden.repeat(2, 1), weight, None, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.69304718, 600.0, 0.69324718]), rtol=1e-6, atol=0)


def test_no_rows() -> None:
    hidden, weight, b, labels = problem(0)
    loss = linear_cross_entropy(hidden, weight, b, labels)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, D)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Logits in the model's dtype and the softmax in float32, as in transformers."""
    hidden, weight, b, labels = problem(64, dtype)
    loss = linear_cross_entropy(hidden, weight, b, labels, entries=300)
    expected = F.cross_entropy(F.linear(hidden, weight, b).float(), labels, reduction="none")
    assert loss.dtype == torch.float32
    size = torch.finfo(dtype).eps
    torch.testing.assert_close(loss, expected, rtol=size, atol=8 * size)
    (grad,) = torch.autograd.grad(loss.mean(), hidden)
    (plain,) = torch.autograd.grad(expected.mean(), hidden)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, plain, rtol=4 * size, atol=4 * size * plain.abs().max().item())


def test_under_autocast() -> None:
    hidden, weight, b, labels = problem(dtype=torch.float32)
    low = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), b.bfloat16(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, b, labels)
    assert torch.equal(loss, low)
    loss.sum().backward()
    assert hidden.grad.dtype == torch.float32


def test_a_trained_weight_gets_its_gradient() -> None:
    hidden, weight, b, labels = problem()
    inputs = hidden, weight.requires_grad_(), b.requires_grad_()
    loss = linear_cross_entropy(*inputs, labels, entries=40)
    expected = torch.autograd.grad(reference.cross_entropy(*inputs, labels).square().sum(), inputs)
    for got, right in zip(torch.autograd.grad(loss.square().sum(), inputs), expected, strict=True):
        torch.testing.assert_close(got, right)


def kept(make) -> int:
    sizes = [0]
    with saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        make().sum()
    return max(sizes)


def test_no_tensor_of_the_vocabularys_size_is_kept() -> None:
    """Nor is the weight kept, which a sharded model only gathers briefly. The plain path shows that the measurement works."""
    hidden, weight, b, labels = problem()
    assert kept(lambda: linear_cross_entropy(hidden, weight, b, labels)) == N * D
    assert kept(lambda: F.cross_entropy(F.linear(hidden, weight, b), labels)) >= N * V


def test_a_tile_has_no_more_logits_than_asked_for(monkeypatch) -> None:
    made: list[int] = []
    right = matmul.linear

    def linear(rows, weight, bias=None):
        made.append(len(rows) * len(weight))
        return right(rows, weight, bias)

    monkeypatch.setattr(matmul, "linear", linear)
    hidden, weight, b, labels = problem()
    linear_cross_entropy(hidden, weight, b, labels, entries=60)
    assert max(made) == 5 * N
    assert sum(made) == N * V
    made.clear()
    linear_cross_entropy(hidden, weight, b, labels)
    assert made == [N * V]


def test_no_product_for_a_gradient_that_is_not_needed(monkeypatch) -> None:
    def refuse(*args):
        raise AssertionError

    monkeypatch.setattr(module, "_add_product_", refuse)
    hidden, weight, b, labels = problem()
    assert linear_cross_entropy(hidden.detach(), weight, b, labels).isfinite().all()
    with pytest.raises(AssertionError):
        linear_cross_entropy(hidden, weight, b, labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_an_almost_certain_label_is_not_lost(dtype: torch.dtype) -> None:
    """D = -(1 - p) (W_y - W_other) for two columns. Computed as sum_v p_v W_v - W_y, rounding would give zero."""
    weight = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=dtype)
    hidden = torch.tensor([[10.0, 0.0], [12.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, None, torch.tensor([0, 0]))
    missing = torch.exp(torch.tensor([-20.0, -24.0], dtype=torch.float64))
    torch.testing.assert_close(loss.double(), missing, rtol=1e-5, atol=0)
    loss.sum().backward()
    expected = missing[:, None] * (weight[1] - weight[0]).double()
    torch.testing.assert_close(hidden.grad.double(), expected, rtol=2 * torch.finfo(dtype).eps + 1e-5, atol=0)


@pytest.mark.parametrize("label", [-1, V, -100])
def test_a_label_outside_the_vocabulary_gives_a_nan_loss(label: int) -> None:
    hidden, weight, b, labels = problem()
    labels[3] = label
    loss = linear_cross_entropy(hidden.detach(), weight, b, labels)
    assert loss.isnan().tolist() == [row == 3 for row in range(N)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_from_logits(dtype: torch.dtype) -> None:
    hidden, weight, b, labels = problem()
    logits = F.linear(hidden, weight, b).detach().to(dtype).requires_grad_()
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss.double(), F.cross_entropy(logits.double(), labels, reduction="none"))
    loss.sum().backward()
    assert logits.grad.dtype == dtype
