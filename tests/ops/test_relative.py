"""The relative step: the change of BA measured against W (method.md has no section on it; `ops/relative.py` gives sources)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloralib.ops import reference
from alloralib.ops.relative import change_norm, step_factor, taper


def draw(seed: int, r: int = 3, n1: int = 7, n2: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n1, n2), (r, n2), (n1, r), (r, n2), (n1, r)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def stepped(W, A, B, dA, dB, rate: float, eta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The step by the functions under test, as the optimizer's hook puts them together."""
    norms = torch.linalg.vector_norm(W, dim=-1)
    t = taper(reference.row_norms(A, B), norms, eta)[:, None]
    c = step_factor(change_norm(A, B, dA, dB), norms, rate)
    of_A = (t * B).norm() / B.norm() if B.any() else t.max()
    return c * of_A * dA, c * t * dB


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 5]), st.sampled_from([0.0, 1.0, 4.0]), st.booleans())
def test_equals_the_twin(seed: int, r: int, eta: float, start: bool) -> None:
    W, A, B, dA, dB = draw(seed, r)
    B = torch.zeros_like(B) if start else B
    for ours, twin in zip(
        stepped(W, A, B, dA, dB, 0.01, eta), reference.relative_step(W, A, B, dA, dB, rate=0.01, eta=eta), strict=True
    ):
        torch.testing.assert_close(ours, twin, rtol=1e-8, atol=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4, 16]), st.sampled_from([1e-4, 1e-2]))
def test_without_taper_one_step_changes_the_same_share_of_w_at_every_rank(seed: int, r: int, rate: float) -> None:
    W, A, B, dA, dB = draw(seed, r)
    stepA, stepB = stepped(W, A, B, dA, dB, rate, 0.0)
    change = stepB @ A + B @ stepA
    assert (change.norm() / W.norm()).item() == pytest.approx(rate, rel=1e-8)


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.sampled_from([0.0, 2.0]))
def test_the_size_of_the_optimizers_step_does_not_matter(seed: int, k: float, eta: float) -> None:
    W, A, B, dA, dB = draw(seed)
    for one, other in zip(stepped(W, A, B, dA, dB, 0.01, eta), stepped(W, A, B, k * dA, k * dB, 0.01, eta), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.sampled_from([0.0, 2.0]))
def test_scaling_w_and_ba_together_scales_the_change(seed: int, k: float, eta: float) -> None:
    """W -> k W and BA -> k BA, as when the layer's input is divided by k: the change of BA becomes k times as large."""
    W, A, B, dA, dB = draw(seed)
    stepA, stepB = stepped(W, A, B, dA, dB, 0.01, eta)
    otherA, otherB = stepped(k * W, A, k * B, dA, k * dB, 0.01, eta)
    torch.testing.assert_close(otherB @ A + k * B @ otherA, k * (stepB @ A + B @ stepA), rtol=1e-8, atol=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 2.0]))
def test_another_split_of_the_product_makes_the_same_change(seed: int, eta: float) -> None:
    """(B, A) -> (B R^-1, R A) with a step that follows it, dB R^-1 and R dA: the change of BA is the same if R is orthogonal,
    and without taper for every R (the taper weighs dA by the norm of B, which R changes)."""
    W, A, B, dA, dB = draw(seed)
    R = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    R = R if eta else R @ torch.diag(torch.tensor([0.2, 1.0, 7.0], dtype=torch.float64))
    inverse = torch.linalg.inv(R)
    stepA, stepB = stepped(W, A, B, dA, dB, 0.01, eta)
    otherA, otherB = stepped(W, R @ A, B @ inverse, R @ dA, dB @ inverse, 0.01, eta)
    torch.testing.assert_close(otherB @ R @ A + B @ inverse @ otherA, stepB @ A + B @ stepA, rtol=1e-7, atol=1e-10)


def test_the_taper_falls_from_1_and_slows_rows_that_have_come_far() -> None:
    norms, weights = torch.tensor([0.0, 0.1, 1.0, 10.0]), torch.ones(4)
    t = taper(norms, weights, 2.0)
    assert t[0] == 1
    assert (t[1:] < t[:-1]).all()
    torch.testing.assert_close(t, 1 / (1 + 4 * norms).sqrt())
    assert (taper(norms, weights, 0.0) == 1).all()
    torch.testing.assert_close(taper(3 * norms, 3 * weights, 2.0), t)


def test_rows_of_zeros_in_w_do_not_stop_the_step() -> None:
    assert taper(torch.tensor([0.01, 0.01]), torch.tensor([0.0, 1.0]), 2.0).min() > 0.1
    assert torch.isfinite(taper(torch.ones(2), torch.zeros(2), 2.0)).all()


@pytest.mark.parametrize(("moved", "weight"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_is_scaled_where_nothing_moved_or_w_is_zero(moved: float, weight: float) -> None:
    W, A, B, dA, dB = draw(0)
    c = step_factor(change_norm(A, B, moved * dA, moved * dB), weight * W.norm(dim=1), 0.1)
    assert c.item() == 1


def test_parts_that_cancel_do_not_blow_up_the_step() -> None:
    """dB A = -B dA up to rounding: the change is nothing but rounding, and must not become a step of any size."""
    W, A, B, *_ = (t.float() for t in draw(0, r=1))
    factor = step_factor(change_norm(A, B, -A, B), W.norm(dim=1), 0.01)
    assert factor.item() < 0.01 * W.norm() / (B @ A).norm() * 1e3


def test_experts_are_scaled_each_by_itself() -> None:
    W, A, B, dA, dB = (torch.stack(pair) for pair in zip(draw(0), draw(1), strict=True))
    c = step_factor(change_norm(A, B, dA, dB), W.norm(dim=-1), 0.01)
    assert c.shape == (2, 1, 1)
    for expert in range(2):
        alone = step_factor(
            change_norm(A[expert], B[expert], dA[expert], dB[expert]), W[expert].norm(dim=-1), 0.01
        )  # fmt: skip
        torch.testing.assert_close(c[expert], alone)


def test_low_precision_is_computed_in_float32() -> None:
    _, A, B, dA, dB = (t.bfloat16() for t in draw(0, r=8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = change_norm(A, B, dA, dB)
    exact = (dB.double() @ A.double() + B.double() @ dA.double()).norm()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)
