"""Section 4.2, property by property, on the fused linear layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloralib.ops import reference
from alloralib.ops.linear import lora_linear
from alloralib.ops.scale import row_norms, scale

from .properties import CHECKS, Problem, solve

problems = st.builds(
    Problem.random,
    seed=st.integers(0, 2**31),
    N=st.integers(2, 9),
    n1=st.integers(1, 12),
    n2=st.integers(1, 12),
    r=st.integers(1, 6),
    eta=st.floats(0.05, 20),
    size=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 100.0]),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@given(p=problems)
def test_property(check, p: Problem) -> None:
    check(lora_linear, p)


@given(eta=st.floats(1e-3, 1e6), n=st.floats(0, 1e12))
def test_scale_is_the_printed_function(eta: float, n: float) -> None:
    magnitude = torch.tensor([n, 0.0], dtype=torch.float64)
    s = scale(magnitude, eta)
    torch.testing.assert_close(s, reference.scale(magnitude, eta), rtol=1e-12, atol=0)
    assert s[1] == eta  # exactly
    assert 0 < s[0] <= eta


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eta", [0.3, 1.0, 1.7, 2.0, 1e6])
def test_scale_at_zero_is_eta_in_every_dtype(eta: float, dtype: torch.dtype) -> None:
    assert scale(torch.zeros(1, dtype=dtype), eta).item() == torch.tensor(eta, dtype=dtype).item()


@given(p=problems)
def test_row_norms_are_those_of_the_product(p: Problem) -> None:
    expected = reference.row_norms(p.A, p.B)
    # squares are exact to eps |A|^2 |B_i|^2, hence norms to sqrt(eps) |A| |B_i| where rows of BA cancel
    slack = 3e-8 * torch.linalg.matrix_norm(p.A) * torch.linalg.vector_norm(p.B, dim=1)
    assert ((row_norms(p.A, p.B) - expected).abs() <= slack + 1e-300).all()


def test_row_norms_in_half_precision_are_float32() -> None:
    A, B = torch.randn(2, 4, 9).bfloat16(), torch.randn(2, 7, 4).bfloat16()
    n = row_norms(A, B)
    assert n.dtype == torch.float32
    assert n.shape == (2, 7)
    torch.testing.assert_close(n, reference.row_norms(A.float(), B.float()))


def cancelling(dtype: torch.dtype, rows: int = 2048) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of A that are nearly parallel, and rows of B that cancel them."""
    g = torch.Generator().manual_seed(0)
    A = torch.randn(256, generator=g) + 1e-2 * torch.randn(8, 256, generator=g)
    B = torch.randn(rows, 8, generator=g)
    return A.to(dtype), (B - B.mean(dim=1, keepdim=True)).to(dtype)


def test_a_bfloat16_gram_matrix_would_have_negative_squares() -> None:
    """The reason for float32 and for the cut at zero: without them most rows are NaN here."""
    A, B = cancelling(torch.bfloat16)
    squares = ((B @ (A @ A.T)) * B).sum(-1)
    assert (squares < 0).sum() > 500


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_nan_where_rows_cancel(dtype: torch.dtype, autocast: bool) -> None:
    A, B = cancelling(dtype)
    x = torch.randn(5, 256, dtype=dtype, requires_grad=True)
    A, B = A.requires_grad_(), B.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        n = row_norms(A, B)
        y = lora_linear(x, None, None, A, B, eta=2.0)
    y.sum().backward()
    assert n.dtype == torch.float32
    for tensor in (n, y, x.grad, A.grad, B.grad):
        assert tensor is not None
        assert tensor.isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_gradcheck_fails_on_A_and_B_exactly_where_the_scale_is_not_one(size: float) -> None:
    p = Problem.random(0, 4, 5, 3, 2, eta=1.0, size=size)
    A, B = p.A.requires_grad_(), p.B.requires_grad_()
    x = p.x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lora_linear(x, p.W, None, p.A.detach(), p.B.detach(), eta=1.0), x)
    for wrong, arguments in {
        "A": lambda A: lora_linear(p.x.detach(), p.W, None, A, p.B.detach(), eta=1.0),
        "B": lambda B: lora_linear(p.x.detach(), p.W, None, p.A.detach(), B, eta=1.0),
    }.items():
        leaf = A if wrong == "A" else B
        plain = size == 0.0  # B = 0 and eta = 1: the scale is one
        assert torch.autograd.gradcheck(arguments, leaf, raise_exception=False) is plain


def test_gradcheck_passes_for_the_plain_gradient() -> None:
    p = Problem.random(0, 4, 5, 3, 2, eta=1.0)
    leaves = [t.requires_grad_() for t in (p.x, p.W, p.A, p.B)]
    assert torch.autograd.gradcheck(lambda x, W, A, B: lora_linear(x, W, None, A, B, gradient="plain", scaling=1.5), leaves)


def test_lora_x_eta_is_a_factor_on_the_output() -> None:
    """eta f with the plain gradient: under SGD the same as lr * eta and A-init * sqrt(eta) (method.md, section 4)."""
    p = Problem.random(3, 6, 5, 4, 2, eta=2.0)
    lr, eta = 0.05, 2.25

    def train(A, B, factor, lr):
        A, B = A.clone(), B.clone()
        for _ in range(5):
            A.requires_grad_(), B.requires_grad_()
            y = lora_linear(p.x, p.W, None, A, B, gradient="plain", scaling=factor)
            grads = torch.autograd.grad((y - p.G).square().mean(), [A, B])
            A, B = ((t - lr * g).detach() for t, g in zip((A, B), grads, strict=True))
        return factor * B @ A

    zero = torch.zeros_like(p.B)
    torch.testing.assert_close(train(p.A, zero, eta, lr), train(p.A * eta**0.5, zero, 1.0, lr * eta))


def test_solve_is_not_vacuous() -> None:
    """The scale matters in the problems above: ALLoRA's gradients differ from LoRA's."""
    p = Problem.random(1, 5, 6, 7, 3, eta=2.0)
    ours = solve(lora_linear, p)
    plain = solve(lambda *a, **k: lora_linear(*a, **{**k, "gradient": "plain"}), p)
    torch.testing.assert_close(ours[:2], plain[:2])
    assert not torch.allclose(ours[2], plain[2])
    assert not torch.allclose(ours[3], plain[3])
