"""Closed forms of dropout against Monte Carlo, and their gradients against autograd."""

import pytest
import torch
import torch.nn.functional as F

from paper.dropout_theory import (
    absolute_error_bound,
    bottleneck_gradients,
    cross_entropy_penalty,
    expected_loss,
    input_gradients,
    loss_variance,
    mean_absolute_error,
    penalty,
    sampled_losses,
)

SHAPES = [(1, 1, 1, 1), (3, 7, 2, 1), (17, 5, 3, 4), (11, 13, 8, 10)]
RATES = [0.05, 0.3, 0.5, 0.8]


def problem(shape, seed=0):
    n, d, r, c = shape
    g = torch.Generator().manual_seed(seed)
    X, A, B, E = (torch.randn(size, generator=g, dtype=torch.float64) for size in ((n, d), (d, r), (r, c), (n, c)))
    return X, A / d**0.5, B, E


def literal(E, H, B, q, count, g):
    """Losses as eq. (1) is written: masks of 0 and 1/q on H."""
    V = torch.bernoulli(torch.full((count, *H.shape), q, dtype=H.dtype), generator=g) / q
    return (E - (H * V) @ B).square().sum((1, 2))


def both_kinds(shape):
    X, A, B, E = problem(shape)
    return {"bottleneck": (E, X @ A, B), "input": (E, X, A @ B)}


@pytest.mark.parametrize("kind", ["bottleneck", "input"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("shape", SHAPES)
def test_mean_and_variance_against_monte_carlo(shape, rate, kind) -> None:
    E, H, B = both_kinds(shape)[kind]
    q, count = 1 - rate, 20_000
    losses = literal(E, H, B, q, count, torch.Generator().manual_seed(1))
    mean, variance = losses.mean(), losses.var()
    assert abs(mean - expected_loss(E, H, B, q)) <= 4 * (variance / count).sqrt() + 1e-9
    fourth = (losses - mean).pow(4).mean()
    error = ((fourth - variance**2).clamp(min=0) / count + 2 * variance**2 / count**2).sqrt()  # of a sample variance
    assert abs(variance - loss_variance(E, H, B, q)) <= 4 * error + 1e-9 * variance


@pytest.mark.parametrize("rate", RATES)
def test_the_fast_sampler_has_the_same_mean_and_variance(rate) -> None:
    E, H, B = both_kinds((17, 5, 3, 4))["bottleneck"]
    losses = sampled_losses(E, H, B, 1 - rate, 20_000, torch.Generator().manual_seed(2))
    spread = loss_variance(E, H, B, 1 - rate)
    assert abs(losses.mean() - expected_loss(E, H, B, 1 - rate)) <= 4 * (spread / 20_000).sqrt()
    fourth = (losses - losses.mean()).pow(4).mean()
    assert abs(losses.var() - spread) <= 4 * ((fourth - spread**2) / 20_000).sqrt()


def test_mean_and_variance_over_all_masks_of_a_small_case() -> None:
    """All 2^4 masks with their probabilities, without sampling."""
    E, H, B = both_kinds((2, 3, 2, 3))["bottleneck"]
    q = 0.7
    masks = torch.tensor([[[i >> 0 & 1, i >> 1 & 1], [i >> 2 & 1, i >> 3 & 1]] for i in range(16)], dtype=torch.float64)
    weights = (q**masks * (1 - q) ** (1 - masks)).prod(-1).prod(-1)
    losses = (E - (H * masks / q) @ B).square().sum((1, 2))
    mean = (weights * losses).sum()
    torch.testing.assert_close(expected_loss(E, H, B, q), mean)
    torch.testing.assert_close(loss_variance(E, H, B, q), (weights * (losses - mean) ** 2).sum())


def test_a_wrong_third_moment_would_be_caught() -> None:
    """Without its third-moment term the variance is wrong in the case above."""
    E, H, B = both_kinds((2, 3, 2, 3))["bottleneck"]
    q = 0.7
    m3 = (1 - q) * (1 - 2 * q) / q**2
    c, own = (E - H @ B) @ B.mT, (B @ B.mT).diagonal()
    assert abs(4 * m3 * (H**3 * c * own).sum()) > 1e-3 * loss_variance(E, H, B, q)


@pytest.mark.parametrize("rate", [0.0, *RATES])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_against_autograd(shape, rate) -> None:
    X, A, B, E = problem(shape, seed=3)
    A.requires_grad_()
    B.requires_grad_()
    for loss, gradients in (
        (expected_loss(E, X @ A, B, 1 - rate), bottleneck_gradients),
        (expected_loss(E, X, A @ B, 1 - rate), input_gradients),
    ):
        wanted = torch.autograd.grad(loss, (A, B))
        for found, name, target in zip(gradients(X, E, A, B, 1 - rate), "AB", wanted, strict=True):
            torch.testing.assert_close(found, target, msg=lambda m, name=name: f"grad_{name}: {m}")


def test_at_zero_b_the_penalty_acts_on_b_alone() -> None:
    X, A, B, E = problem((11, 13, 8, 10))
    zero = torch.zeros_like(B)
    (with_A, _), (without_A, _) = (bottleneck_gradients(X, E, A, zero, q) for q in (0.5, 1.0))
    torch.testing.assert_close(with_A, without_A)
    small = 1e-3 * B
    change = [
        g - h for g, h in zip(bottleneck_gradients(X, E, A, small, 0.5), bottleneck_gradients(X, E, A, small, 1.0), strict=True)
    ]
    assert change[1].norm() > 100 * change[0].norm()


def test_without_dropout_there_is_no_variance() -> None:
    E, H, B = both_kinds((11, 13, 8, 10))["bottleneck"]
    assert loss_variance(E, H, B, 1.0) == 0
    assert penalty(H, B, 1.0) == 0


def test_the_error_of_a_mean() -> None:
    """2000 means of 200 masks agree with sqrt(2/pi) Std/sqrt(N) within 4 standard errors; the bound is larger."""
    E, H, B = both_kinds((17, 5, 3, 4))["bottleneck"]
    losses = sampled_losses(E, H, B, 0.8, 400_000, torch.Generator().manual_seed(4)).view(2000, 200)
    errors = (losses.mean(1) - expected_loss(E, H, B, 0.8)).abs()
    std = float(loss_variance(E, H, B, 0.8).sqrt())
    predicted = mean_absolute_error(std, 200)
    assert abs(float(errors.mean()) - predicted) <= 4 * float(errors.std()) / 2000**0.5 + 0.01 * predicted
    assert predicted < absolute_error_bound(std, 200)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_cross_entropy_to_second_order(rate) -> None:
    """For logits that dropout changes little, Monte Carlo finds the quadratic term, and more closely for smaller logits."""
    X, A, B, _ = problem((11, 13, 8, 10), seed=5)
    H, count = X @ A, 40_000
    labels = torch.arange(11) % 10
    g = torch.Generator().manual_seed(6)
    V = torch.bernoulli(torch.full((count, *H.shape), 1 - rate, dtype=H.dtype), generator=g) / (1 - rate)
    for size in (0.1, 0.05):
        logits = H @ (size * B)
        plain = F.cross_entropy(logits, labels, reduction="sum")
        noisy = ((H * V) @ (size * B)).log_softmax(-1)[:, torch.arange(11), labels].neg().sum(1)
        # the first-order term has mean zero; without it the curvature is measured with less noise
        slope = (logits.softmax(-1) - F.one_hot(labels, 10)) @ (size * B).mT
        found = noisy - plain - ((V - 1) * H * slope).sum((1, 2))
        wanted = cross_entropy_penalty(H, size * B, logits, 1 - rate)
        assert abs(found.mean() - wanted) <= 4 * found.std() / count**0.5 + 0.5 * size * wanted
