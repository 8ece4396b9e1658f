"""The row norms of BA and the scale made from them.

Source: Huang & Balestriero, "ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws", arXiv:2410.09692,
section 4.2 and Fig. 6.

    n_i = ||(BA)_i||_2          the norm itself, not its square
    s_i = 1 / sqrt(n_i + 1/eta^2)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .precision import in_dtype, without_autocast


def row_norms(A: Tensor, B: Tensor) -> Tensor:
    """Euclidean norm of every row of BA, without forming BA.

    n_i^2 = B_i (A A^T) B_i^T, so the r x r Gram matrix A A^T is all that is needed of A:
    O(r^2 (n1 + n2)) operations instead of O(r n1 n2).

    Args:
        A: (..., r, n2), any floating dtype.
        B: (..., n1, r), the same leading dimensions.

    Returns:
        (..., n1), non-negative, detached, in float32 or the wider dtype of A and B.

    Autocast is switched off: in bfloat16 near-collinear A and cancelling B give negative squares. Round-off can
    do so in float32 too, hence they are cut at zero in front of the root.
    """
    with without_autocast(A.device.type):
        # the calls take longer than their arithmetic here, so the usual dtype is not asked for and the shorter calls are used
        plain = A.dtype == B.dtype == torch.float32
        dtype = torch.float32 if plain else torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
        a, b = _constant(A, dtype), _constant(B, dtype)
        product = torch.mm if a.dim() == 2 else torch.matmul
        return product(b, product(a, a.mT)).mul_(b).sum(dim=-1).relu_().sqrt_()


def _constant(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor without its history, in that dtype."""
    if torch.is_grad_enabled():
        factor = factor.detach()
    return in_dtype(factor, dtype)


def row_scales(pairs: Sequence[tuple[Tensor, Tensor]], eta: float) -> list[Tensor]:
    """The scale of the rows of BA of several layers, which may differ in shape but not in dtype and device.

    Args:
        pairs: A and B of each, as `row_norms` takes them; with leading dimensions only where it is one.
        eta: of the scale.

    Returns:
        (..., n1, 1) for each, to the bit what it is without the others.
    """
    norms = [row_norms(A, B) for A, B in pairs]
    if len(norms) < 2:
        return [scale(n, eta).unsqueeze(-1) for n in norms]
    together = scale(torch.cat(norms), eta).unsqueeze(-1)
    return list(torch.split_with_sizes(together, [len(n) for n in norms]))


def scale(magnitude: Tensor, eta: float) -> Tensor:
    """The adaptor function of the whole family: 1 / sqrt(magnitude + 1/eta^2).

    Written as eta rsqrt(1 + eta^2 magnitude), the same number, which is exactly eta at zero in every dtype. Every operation
    of the family calls this function and nothing else, so `adaptor` can put another in its place.

    Args:
        magnitude: any shape, non-negative: row norms (ALLoRA) or |f(x)| (ALLoRA-OD, ASF-LoRA).
        eta: the value at zero magnitude, > 0. It is not the learning rate.

    Returns:
        the shape and dtype of `magnitude`, 0 < s <= eta.
    """
    return _adaptor(magnitude, eta)


def paper_adaptor(magnitude: Tensor, eta: float) -> Tensor:
    """The paper's function."""
    return torch.rsub(magnitude, 1, alpha=-(eta**2)).rsqrt_() * eta  # 1 + eta^2 magnitude in one operation


_adaptor: Callable[[Tensor, float], Tensor] = paper_adaptor


@contextmanager
def adaptor(function: Callable[[Tensor, float], Tensor]) -> Generator[None]:
    """Train with another adaptor function (the paper's future work) while this is open; for studies, in one thread.

    Args:
        function: (magnitude, eta) -> the scale, in the shape and dtype of the magnitude, eta at zero magnitude.
    """
    global _adaptor
    before, _adaptor = _adaptor, function
    try:
        yield
    finally:
        _adaptor = before
