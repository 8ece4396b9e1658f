"""The properties of section 4.2 for one linear layer, as checks of any implementation.

An implementation is called as impl(x, W, None, A, B, gradient="row", eta=eta). The checks run on ours with random inputs
(test_rule.py), and on broken implementations (test_mutations.py), on which at least one of them must fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

Implementation = Callable[..., Tensor]


@dataclass
class Problem:
    """One linear layer in float64: x (N, n2), W (n1, n2), A (r, n2), B (n1, r), G (N, n1)."""

    x: Tensor
    W: Tensor
    A: Tensor
    B: Tensor
    G: Tensor
    eta: float

    @classmethod
    def random(cls, seed: int, N: int, n1: int, n2: int, r: int, eta: float, size: float = 1.0) -> Problem:
        g = torch.Generator().manual_seed(seed)
        x, W, A, B, G = (
            torch.randn(shape, generator=g, dtype=torch.float64) for shape in [(N, n2), (n1, n2), (r, n2), (n1, r), (N, n1)]
        )
        return cls(x, W, A, size * B, G, eta)

    def with_(self, **changes: Tensor) -> Problem:
        return Problem(**{**self.__dict__, **changes})

    @property
    def s(self) -> Tensor:
        """The scale as printed, BA formed: (n1,)."""
        return (torch.linalg.vector_norm(self.B @ self.A, dim=1) + 1 / self.eta**2) ** -0.5


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


def solve(impl: Implementation, p: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, dL/dx, dL/dA, dL/dB at the upstream gradient G."""
    x, A, B = (t.clone().requires_grad_() for t in (p.x, p.A, p.B))
    y = impl(x, p.W, None, A, B, gradient="row", eta=p.eta)
    y.backward(p.G)
    assert x.grad is not None
    assert A.grad is not None
    assert B.grad is not None
    return y.detach(), x.grad, A.grad, B.grad


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, b.abs().max().item()))


def value_is_lora_without_alpha(impl: Implementation, p: Problem) -> None:
    y, *_ = solve(impl, p)
    close(y, p.x @ (p.W + p.B @ p.A).T)


def gradient_of_B_is_loras_times_s(impl: Implementation, p: Problem) -> None:
    *_, grad_B = solve(impl, p)
    close(grad_B, p.s[:, None] * (p.G.T @ (p.x @ p.A.T)))


def gradient_of_A_has_s_inside_the_sum(impl: Implementation, p: Problem) -> None:
    _, _, grad_A, _ = solve(impl, p)
    close(grad_A, (p.G * p.s @ p.B).T @ p.x)


def gradient_of_x_is_loras(impl: Implementation, p: Problem) -> None:
    _, grad_x, _, _ = solve(impl, p)
    close(grad_x, p.G @ (p.W + p.B @ p.A))


def scale_is_eta_at_zero(impl: Implementation, p: Problem) -> None:
    zero = p.with_(B=torch.zeros_like(p.B))
    *_, grad_B = solve(impl, zero)
    close(grad_B, p.eta * (p.G.T @ (p.x @ p.A.T)))


def scale_sees_only_the_product(impl: Implementation, p: Problem) -> None:
    """Under (B R^-1, R A), dL/dB becomes dL/dB R^T, as LoRA's does: s has not changed."""
    r = p.A.shape[0]
    R = torch.eye(r, dtype=torch.float64) + 0.3 * torch.ones(r, r, dtype=torch.float64).triu(1)
    *_, grad_B = solve(impl, p)
    *_, moved = solve(impl, p.with_(A=R @ p.A, B=p.B @ torch.linalg.inv(R)))
    close(moved, grad_B @ R.T)


def rows_may_be_permuted(impl: Implementation, p: Problem) -> None:
    order = torch.arange(p.B.shape[0]).flip(0)
    _, grad_x, grad_A, grad_B = solve(impl, p)
    _, px, pA, pB = solve(impl, p.with_(W=p.W[order], B=p.B[order], G=p.G[:, order]))
    close(pB, grad_B[order])
    close(pA, grad_A)
    close(px, grad_x)


def micro_batches_add_up(impl: Implementation, p: Problem) -> None:
    cut = p.x.shape[0] // 2
    _, _, grad_A, grad_B = solve(impl, p)
    parts = [solve(impl, p.with_(x=p.x[part], G=p.G[part])) for part in (slice(cut), slice(cut, None))]
    close(sum(q[2] for q in parts), grad_A)  # pyright: ignore
    close(sum(q[3] for q in parts), grad_B)  # pyright: ignore


CHECKS: list[Callable[[Implementation, Problem], None]] = [
    value_is_lora_without_alpha,
    gradient_of_B_is_loras_times_s,
    gradient_of_A_has_s_inside_the_sum,
    gradient_of_x_is_loras,
    scale_is_eta_at_zero,
    scale_sees_only_the_product,
    rows_may_be_permuted,
    micro_batches_add_up,
]
