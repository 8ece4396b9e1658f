"""Proposition 1: the bound holds for random networks, and the aligned construction attains it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloralib.ops.ripple import low_rank_norm, ripple_bound


def spectral(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, ord=2))


@given(st.integers(1, 64), st.floats(0.01, 2), st.sampled_from([0.5, 1.0, 4.0]), st.integers(2, 12))
def test_the_aligned_construction_attains_the_bound(layers: int, m: float, eta: float, width: int) -> None:
    u = torch.nn.functional.normalize(torch.ones(width, 1, dtype=torch.float64), dim=0)
    W, A, B = torch.eye(width, dtype=torch.float64), u.mT, m * u
    bound = ripple_bound([spectral(W)] * layers, [low_rank_norm(A, B)] * layers, eta)
    x = u
    for _ in range(layers):
        x = W @ x + eta * (B @ (A @ x))
    exact = layers * math.log(1 + eta * m)
    assert math.log(float(x.norm())) == pytest.approx(exact, rel=1e-9)
    assert bound.log_product == pytest.approx(exact, rel=1e-9)
    assert bound.log_mean == pytest.approx(exact, rel=1e-9)
    assert bound.log_base == pytest.approx(0)


def test_the_growth_of_64_layers() -> None:
    """m = .1, eta = 4, L = 64: 2.3e9."""
    assert ripple_bound([1.0] * 64, [0.1] * 64, 4.0).growth == pytest.approx(2.3e9, rel=0.03)


@given(st.integers(1, 8), st.integers(0, 10_000), st.sampled_from([0.25, 1.0, 3.0]))
def test_random_networks_stay_below_the_bound(layers: int, seed: int, eta: float) -> None:
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 9, (layers + 1,), generator=g).tolist()
    x = torch.randn(sizes[0], generator=g, dtype=torch.float64)
    start, weights, deltas = float(x.norm()), [], []
    for n2, n1 in itertools.pairwise(sizes):
        W = torch.randn(n1, n2, generator=g, dtype=torch.float64)
        A, B = torch.randn(2, n2, generator=g, dtype=torch.float64), torch.randn(n1, 2, generator=g, dtype=torch.float64)
        x = W @ x + eta * (B @ (A @ x))
        weights.append(spectral(W))
        deltas.append(low_rank_norm(A, B))
        assert deltas[-1] == pytest.approx(spectral(B @ A))
    bound = ripple_bound(weights, deltas, eta)
    assert math.log(float(x.norm()) / start) <= bound.log_product + 1e-9 <= bound.log_mean + 1e-6


def test_logarithms_do_not_overflow() -> None:
    bound = ripple_bound([1.0] * 1000, [9.0] * 1000)
    assert bound.growth == math.inf
    assert bound.log_product == pytest.approx(1000 * math.log(10))


def test_rank_beyond_the_smaller_side() -> None:
    A, B = torch.randn(5, 3), torch.randn(2, 5)
    assert low_rank_norm(A, B) == pytest.approx(spectral(B @ A), rel=1e-5)
