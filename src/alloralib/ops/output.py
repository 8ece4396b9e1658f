"""The output adaptors that need code of their own; "identity" and "eta" are constant factors."""

from __future__ import annotations

from torch import Tensor

from .scale import scale


def scaled_output(f: Tensor, eta: float) -> Tensor:
    """ASF-LoRA: f / sqrt(|f| + 1/eta^2), entry by entry, differentiated through (section 4.3).

    Args:
        f: the low-rank branch's output, any shape.
        eta: the slope at zero, > 0.
    """
    return f * scale(f.abs(), eta)
