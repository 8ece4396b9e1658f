"""Cross-entropy in chunks is cross-entropy: value, gradient, and what it leaves in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from alloralib.ops import products, reference
from alloralib.ops.cross_entropy import cross_entropy, linear_cross_entropy

N, D, V = 11, 5, 23


def problem(rows: int = N, dtype: torch.dtype = torch.float64, bias: bool = True):
    g = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, D, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=dtype)
    labels = torch.randint(V, (rows,), generator=g)
    return hidden, weight, torch.randn(V, generator=g, dtype=dtype) if bias else None, labels


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, N, N + 1, None])
def test_it_is_the_twin(chunk: int | None, bias: bool) -> None:
    hidden, weight, b, labels = problem(bias=bias)
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)  # every row's loss may be used for something else
    scores = linear_cross_entropy(hidden, weight, b, labels, chunk=chunk)
    expected = reference.cross_entropy(hidden, weight, b, labels)
    torch.testing.assert_close(scores.loss, expected)
    (grad,) = torch.autograd.grad(scores.loss @ weights, hidden)
    (natural,) = torch.autograd.grad(expected @ weights, hidden)
    torch.testing.assert_close(grad, natural)


def test_gradcheck() -> None:
    hidden, weight, b, labels = problem()
    assert torch.autograd.gradcheck(lambda h: linear_cross_entropy(h, weight, b, labels, chunk=4).loss, hidden)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(linear_cross_entropy(hidden, weight, b, labels).loss.sum(), hidden, create_graph=True)


def test_entropy_and_hits() -> None:
    hidden, weight, b, labels = problem()
    logits = F.linear(hidden, weight, b).detach()
    labels[:4] = logits[:4].argmax(dim=1)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    for scores in (linear_cross_entropy(hidden, weight, b, labels, chunk=4), cross_entropy(logits, labels, chunk=4)):
        torch.testing.assert_close(scores.entropy, expected)
        assert not scores.entropy.requires_grad
        assert torch.equal(scores.hit, logits.argmax(dim=1) == labels)
        assert scores.hit.any()
        assert not scores.hit.all()


def test_certain_and_hopeless_labels() -> None:
    """Probabilities that are 1 or too small for a float, whose logarithm is not."""
    weight, hidden = torch.tensor([[1.0], [-1.0]]), torch.tensor([[300.0], [1e-4]], requires_grad=True)
    loss = linear_cross_entropy(hidden.repeat(2, 1), weight, None, torch.tensor([0, 0, 1, 1])).loss
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.69304718, 600.0, 0.69324718]), rtol=1e-6, atol=0)


def test_no_row_at_all() -> None:
    hidden, weight, b, labels = problem(0)
    loss = linear_cross_entropy(hidden, weight, b, labels).loss
    assert loss.shape == (0,)
    loss.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, D)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Logits in the model's dtype, the softmax in float32, as transformers takes them."""
    hidden, weight, b, labels = problem(64, dtype)
    loss = linear_cross_entropy(hidden, weight, b, labels, chunk=9).loss
    expected = F.cross_entropy(F.linear(hidden, weight, b).float(), labels, reduction="none")
    assert loss.dtype == torch.float32
    size = torch.finfo(dtype).eps
    torch.testing.assert_close(loss, expected, rtol=size, atol=8 * size)
    (grad,) = torch.autograd.grad(loss.mean(), hidden)
    (natural,) = torch.autograd.grad(expected.mean(), hidden)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, natural, rtol=4 * size, atol=4 * size * natural.abs().max().item())


def test_under_autocast() -> None:
    hidden, weight, b, labels = problem(dtype=torch.float32)
    low = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), b.bfloat16(), labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, b, labels).loss
    assert torch.equal(loss, low)
    loss.sum().backward()
    assert hidden.grad.dtype == torch.float32


def test_a_weight_that_is_trained_gets_its_gradient() -> None:
    hidden, weight, b, labels = problem()
    inputs = hidden, weight.requires_grad_(), b.requires_grad_()
    loss = linear_cross_entropy(*inputs, labels, chunk=4).loss
    expected = torch.autograd.grad(reference.cross_entropy(*inputs, labels).square().sum(), inputs)
    for got, right in zip(torch.autograd.grad(loss.square().sum(), inputs), expected, strict=True):
        torch.testing.assert_close(got, right)


def kept(make) -> int:
    sizes = [0]
    with saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        make().sum()
    return max(sizes)


def test_nothing_of_the_vocabularys_size_is_kept() -> None:
    """Nor the weight, which a sharded model gathers for a moment only. The plain path shows that the measure works."""
    hidden, weight, b, labels = problem()
    assert kept(lambda: linear_cross_entropy(hidden, weight, b, labels).loss) == N * D
    assert kept(lambda: F.cross_entropy(F.linear(hidden, weight, b), labels)) >= N * V


def test_no_more_logits_than_a_chunk(monkeypatch) -> None:
    made: list[int] = []
    right = products.linear

    def linear(rows, weight, bias=None):
        made.append(len(rows) * len(weight))
        return right(rows, weight, bias)

    monkeypatch.setattr(products, "linear", linear)
    hidden, weight, b, labels = problem()
    linear_cross_entropy(hidden, weight, b, labels, chunk=3)
    assert max(made) == 3 * V
    made.clear()
    with torch.no_grad():
        linear_cross_entropy(hidden.detach(), weight, b, labels, chunk=N)
    assert made == [N * V]  # no product for a gradient that nobody asks for
