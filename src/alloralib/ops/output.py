"""The output adaptors that need code of their own; "identity" and "eta" are constant factors."""

from __future__ import annotations

import torch
from torch import Tensor

from .scale import scale


def scaled_output(f: Tensor, eta: float) -> Tensor:
    """ASF-LoRA: f / sqrt(|f| + 1/eta^2), entry by entry, differentiated through (section 4.3).

    Args:
        f: the low-rank branch's output, any shape.
        eta: the slope at zero, > 0.

    The scale is taken in float32 or wider: its derivative holds the cube of a root, which bfloat16 rounds away.
    """
    wide = torch.promote_types(f.dtype, torch.float32)
    return f * scale(f.abs().to(wide), eta).to(f.dtype)
