"""Expected loss, gradients and exact variance of linear LoRA under dropout (the paper's first two flaws).

Source: Huang & Balestriero, arXiv:2410.09692, section 3, eq. (1) and appendix A; the variance is derived here.
The paper's row convention: X is N x D, A is D x r, B is r x C, and E = Y - X W is the residual of the frozen weight.

    q       keep probability, rate = 1 - q; a mask entry V is 1/q with probability q, else 0
    s^2     = Var V = (1 - q)/q
    L(V)    = ||E - (H o V) B||_F^2,    H = X A: dropout on the bottleneck, as in the paper
            = ||E - (X o V) A B||_F^2:  dropout on the input, as in PEFT: the same with X for H and AB for B

Most functions take (E, H, B) and so serve both kinds of dropout. Losses are sums, not means, over rows and outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def expected_loss(E: Tensor, H: Tensor, B: Tensor, q: float) -> Tensor:
    """The expected loss, E[L] = ||E - H B||^2 + s^2 sum_k ||H_:k||^2 ||B_k:||^2. Differentiable.

    Args:
        E: (N, C).
        H: (N, r): X A for bottleneck dropout, X for input dropout.
        B: (r, C): B for bottleneck dropout, A B for input dropout.
        q: keep probability, in (0, 1].

    Returns:
        a scalar.
    """
    return (E - H @ B).square().sum() + penalty(H, B, q)


def penalty(H: Tensor, B: Tensor, q: float) -> Tensor:
    """What dropout adds to the expected loss: s^2 sum_k ||H_:k||^2 ||B_k:||^2. Shapes as in `expected_loss`."""
    return _spread(q) * (H.square().sum(0) * B.square().sum(1)).sum()


def bottleneck_gradients(X: Tensor, E: Tensor, A: Tensor, B: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """Gradients of the expected loss under bottleneck dropout.

    grad_A / 2 = -X^T E B^T + X^T X A [B B^T + s^2 diag ||B_k:||^2]
    grad_B / 2 = -A^T X^T E + [A^T X^T X A + s^2 diag ||(X A)_:k||^2] B

    At B = 0 the penalty has no gradient for A, whatever the rate: the paper's second flaw.

    Args:
        X: (N, D). E: (N, C). A: (D, r). B: (r, C). q: keep probability.

    Returns:
        grad_A (D, r) and grad_B (r, C).
    """
    s2, H = _spread(q), X @ A
    grad_A = -X.mT @ E @ B.mT + X.mT @ H @ (B @ B.mT + s2 * torch.diag(B.square().sum(1)))
    grad_B = -H.mT @ E + (H.mT @ H + s2 * torch.diag(H.square().sum(0))) @ B
    return 2 * grad_A, 2 * grad_B


def input_gradients(X: Tensor, E: Tensor, A: Tensor, B: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """Gradients of the expected loss under input dropout; arguments and result as in `bottleneck_gradients`.

    With M = A B:  grad_M / 2 = -X^T (E - X M) + s^2 diag ||X_:d||^2 M,   grad_A = grad_M B^T,   grad_B = A^T grad_M
    """
    M = A @ B
    grad_M = 2 * (-X.mT @ (E - X @ M) + _spread(q) * X.square().sum(0)[:, None] * M)
    return grad_M @ B.mT, A.mT @ grad_M


def loss_variance(E: Tensor, H: Tensor, B: Tensor, q: float) -> Tensor:
    """Exact variance of the loss over the draw of the masks; shapes as in `expected_loss`.

    With e = E - H B, c = e B^T, K = B B^T, m3 = (1-q)(1-2q)/q^2, m4 = (1-q)[(1-q)^3/q^3 + 1]:

        4 s^2 sum H^2 c^2 + 2 s^4 sum_n sum_{k != l} H_nk^2 H_nl^2 K_kl^2
        + (m4 - s^4) sum H_nk^4 K_kk^2 - 4 m3 sum H_nk^3 c_nk K_kk
    """
    s2, m3 = _spread(q), (1 - q) * (1 - 2 * q) / q**2
    m4 = (1 - q) * ((1 - q) ** 3 / q**3 + 1)
    c, K = (E - H @ B) @ B.mT, B @ B.mT
    own, H2 = K.diagonal(), H.square()
    across = ((H2 @ K.square()) * H2).sum() - (H2.square() * own.square()).sum()
    return (
        4 * s2 * (H2 * c.square()).sum()
        + 2 * s2**2 * across
        + (m4 - s2**2) * (H2.square() * own.square()).sum()
        - 4 * m3 * (H2 * H * c * own).sum()
    )


def mean_absolute_error(std: float, masks: int) -> float:
    """The expected |mean of N losses - E[L]| for large N, by the central limit theorem: sqrt(2/pi) Std / sqrt(N)."""
    return math.sqrt(2 / math.pi) * absolute_error_bound(std, masks)


def absolute_error_bound(std: float, masks: int) -> float:
    """A bound on the same for every N: Std / sqrt(N) (appendix A, Jensen's inequality)."""
    return std / math.sqrt(masks)


def sampled_losses(E: Tensor, H: Tensor, B: Tensor, q: float, count: int, generator: torch.Generator) -> Tensor:
    """The loss for `count` independent draws of the masks, one mask per row of H; shapes as in `expected_loss`.

    Expanded around V = 1, L = ||e||^2 - 2 sum (H o d) o c + sum_n (H o d)_n K (H o d)_n^T with d = V - 1, so that a draw
    costs N r^2 and no product with C.

    Returns:
        (count,).
    """
    e = E - H @ B
    c, K, rest = e @ B.mT, B @ B.mT, e.square().sum()
    losses = torch.empty(count, dtype=H.dtype)
    block = max(1, 2_000_000 // H.numel())
    for start in range(0, count, block):
        size = min(block, count - start)
        keep = torch.rand((size, *H.shape), generator=generator, dtype=torch.float32) < q
        moved = H * (keep.to(H.dtype) / q - 1)
        losses[start : start + size] = rest - 2 * (moved * c).sum((1, 2)) + ((moved @ K) * moved).sum((1, 2))
    return losses


def cross_entropy_penalty(H: Tensor, B: Tensor, logits: Tensor, q: float) -> Tensor:
    """What dropout before the last layer adds to a summed cross-entropy, to second order in the masks.

        1/2 s^2 sum_n sum_k H_nk^2 B_k (diag p_n - p_n p_n^T) B_k^T,    p_n = softmax(logits_n)

    Args:
        H: (N, r). B: (r, C).
        logits: (N, C) without dropout.
        q: keep probability.
    """
    p = logits.softmax(-1)
    curvature = p @ B.square().mT - (p @ B.mT).square()  # (N, r): the variance of B_k under p_n
    return 0.5 * _spread(q) * (H.square() * curvature).sum()


def _spread(q: float) -> float:
    return (1 - q) / q
