"""The row norms of BA, and the scale that ALLoRA makes from them.

Source: Huang & Balestriero, "ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws", arXiv:2410.09692,
section 4.2 and Fig. 6.

    n_i = ||(BA)_i||_2                  the norm itself, not its square
    s_i = 1 / sqrt(n_i + 1/eta^2)
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from .precision import in_dtype, without_autocast


def row_scale(A: Tensor, B: Tensor, eta: float) -> Tensor:
    """s, the scale of every row of BA, as a column: 1 / sqrt(||(BA)_i|| + 1/eta^2).

    Args:
        A: (..., r, n2), any floating dtype.
        B: (..., n1, r), the same leading dimensions.
        eta: the scale of a row that is zero, > 0.

    Returns:
        (..., n1, 1), detached, in float32 or the wider dtype of A and B.
    """
    return scale(row_norms(A, B), eta).unsqueeze(-1)


def row_norms(A: Tensor, B: Tensor) -> Tensor:
    """Euclidean norm of every row of BA, without forming BA.

    n_i^2 = B_i (A A^T) B_i^T, so only the r x r Gram matrix A A^T is needed of A: O(r^2 (n1 + n2)) operations instead of
    O(r n1 n2).

    Args:
        A: (..., r, n2), any floating dtype.
        B: (..., n1, r), the same leading dimensions.

    Returns:
        (..., n1), non-negative, detached, in float32 or the wider dtype of A and B.

    Autocast is off inside: in bfloat16, nearly collinear rows of A and a B that cancels them give negative squares. Rounding
    can do the same in float32, so squares are clamped at zero before the root.
    """
    with without_autocast(A.device.type):
        # These tensors are small and a call costs more than its arithmetic, so the common dtype takes the shortest way.
        plain = A.dtype == B.dtype == torch.float32
        dtype = torch.float32 if plain else torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
        a, b = _constant(A, dtype), _constant(B, dtype)
        product = torch.mm if a.dim() == 2 else torch.matmul
        return product(b, product(a, a.mT)).mul_(b).sum(dim=-1).relu_().sqrt_()


def _constant(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor in `dtype`, detached."""
    if torch.is_grad_enabled():
        factor = factor.detach()
    return in_dtype(factor, dtype)


def scale(magnitude: Tensor, eta: float) -> Tensor:
    """The adaptor function of the whole family: 1 / sqrt(magnitude + 1/eta^2).

    Every method of the family calls this function and no other, so that `adaptor` can replace it in one place.

    Args:
        magnitude: any shape, non-negative: row norms (ALLoRA) or |f(x)| (ALLoRA-OD, ASF-LoRA).
        eta: the value at zero magnitude, > 0. It is not the learning rate.

    Returns:
        the shape and dtype of `magnitude`, 0 < s <= eta.
    """
    return _adaptor(magnitude, eta)


def paper_adaptor(magnitude: Tensor, eta: float) -> Tensor:
    """The paper's function, as eta / sqrt(1 + eta^2 magnitude): exactly eta at zero in every dtype."""
    return torch.rsub(magnitude, 1, alpha=-(eta**2)).rsqrt_() * eta  # rsub: 1 + eta^2 magnitude in one operation


_adaptor: Callable[[Tensor, float], Tensor] = paper_adaptor


@contextmanager
def adaptor(function: Callable[[Tensor, float], Tensor]) -> Generator[None]:
    """Train with another adaptor function inside a `with` block (the paper's future work). For studies; not thread-safe.

    Args:
        function: (magnitude, eta) -> the scale, in the shape and dtype of `magnitude`, eta at zero magnitude.
    """
    global _adaptor
    before, _adaptor = _adaptor, function
    try:
        yield
    finally:
        _adaptor = before


def scaled_output(f: Tensor, eta: float) -> Tensor:
    """The output adaptor of ASF-LoRA: f / sqrt(|f| + 1/eta^2) entry by entry, differentiated through (section 4.3).

    Args:
        f: output of the low-rank branch, any shape.
        eta: the slope at zero, > 0.

    Returns:
        the shape and dtype of f. The scale is computed in float32 or wider: its derivative holds the cube of a root, which
        bfloat16 would round away.
    """
    wide = torch.promote_types(f.dtype, torch.float32)
    return f * scale(f.abs().to(wide), eta).to(f.dtype)
