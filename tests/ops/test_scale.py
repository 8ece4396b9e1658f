"""The row norms of BA and the scale s = 1 / sqrt(n + 1/eta^2): the equation of section 4.2."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloralib.ops import reference
from alloralib.ops.linear import lora_linear
from alloralib.ops.scale import row_norms, row_scale, scale

from .properties import Problem, problems


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


def test_row_scale_is_the_equation_row_by_row() -> None:
    p = Problem.random(0, 2, 7, 5, 3, eta=1.7)
    torch.testing.assert_close(row_scale(p.A, p.B, p.eta), p.s.unsqueeze(-1))


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
    """Why row norms are computed in float32 and squares are clamped at zero: without that, most rows are NaN here."""
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
