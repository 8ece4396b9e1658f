"""The ripple bound: how much the adapters of many layers can amplify together (the paper's third flaw).

Source: Huang & Balestriero, arXiv:2410.09692, Proposition 1, for a stack of linear layers

    f_L(x) = prod_l (W_l + eta B_l A_l) x
    ||f_L(x)|| <= prod_l (||W_l|| + eta ||B_l A_l||) ||x|| <= C (1 + eta m)^L ||x||
    C = prod_l ||W_l||,    m = mean_l ||B_l A_l|| / ||W_l||

with spectral norms. It is a worst case, attained if every layer stretches the same direction (W_l = I, B_l A_l = m u u^T);
random directions stay far below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RippleBound:
    """The two bounds of Proposition 1 on ||f_L(x)|| / ||x||, as natural logarithms, because the numbers overflow.

    Attributes:
        layers: number of layers, L.
        log_base: log C, the bound for the frozen layers alone.
        log_product: log of prod_l (||W_l|| + eta ||B_l A_l||), the tighter bound.
        log_mean: log of C (1 + eta m)^L.
        mean_ratio: m.
    """

    layers: int
    log_base: float
    log_product: float
    log_mean: float
    mean_ratio: float

    @property
    def growth(self) -> float:
        """The adapters' part: prod_l (1 + eta ||B_l A_l|| / ||W_l||), infinite where that overflows."""
        excess = self.log_product - self.log_base
        return math.exp(excess) if excess < 700 else math.inf


def ripple_bound(weight_norms: Sequence[float], delta_norms: Sequence[float], eta: float = 1.0) -> RippleBound:
    """Proposition 1 from the spectral norms of every layer.

    Args:
        weight_norms: ||W_l||, (L,), > 0.
        delta_norms: ||B_l A_l||, (L,), >= 0.
        eta: the factor on BA: 1 for ALLoRA, alpha/r for LoRA.
    """
    layers = len(weight_norms)
    log_base = math.fsum(math.log(w) for w in weight_norms)
    log_product = math.fsum(math.log(w + eta * d) for w, d in zip(weight_norms, delta_norms, strict=True))
    ratio = math.fsum(d / w for w, d in zip(weight_norms, delta_norms, strict=True)) / max(layers, 1)
    return RippleBound(layers, log_base, log_product, log_base + layers * math.log1p(eta * ratio), ratio)


def low_rank_norm(A: Tensor, B: Tensor) -> float:
    """||BA||_2 without forming BA: the largest singular value of R_B R_A^T, from B = Q R_B and A^T = Q' R_A.

    Args:
        A: (r, n2).
        B: (n1, r).
    """
    linalg: Any = torch.linalg  # untyped
    a: Tensor = linalg.qr(A.detach().to(torch.float64).mT, mode="r").R
    b: Tensor = linalg.qr(B.detach().to(torch.float64), mode="r").R
    return float(linalg.matrix_norm(b @ a.mT, ord=2))
