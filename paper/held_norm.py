"""Normalization layers that keep the statistics of another forward pass at the same tokens.

With its statistics held, a norm is an affine map and does not counteract what an adapter adds to its input.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from alloralib.errors import ModelError


class HeldNorm(nn.Module):
    """A norm that divides by the deviations that it recorded in the last forward pass with `recording` on.

    Args:
        inner: a LayerNorm or an RMSNorm.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.recording = inner, True
        self.eps: float = inner.eps if isinstance(inner, nn.LayerNorm) else getattr(inner, "variance_epsilon", 1e-6)
        self.held: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The same as `inner` while recording; afterwards an affine map."""
        centered = x - x.mean(-1, keepdim=True) if isinstance(self.inner, nn.LayerNorm) else x
        deviation = (centered.square().mean(-1, keepdim=True) + self.eps).sqrt()
        y = self.inner(x)
        if self.recording:
            self.held = deviation
            return y
        offset = getattr(self.inner, "bias", None)
        offset = 0.0 if offset is None else offset
        return offset + (y - offset) * (deviation / self.held)


def hold_norms(blocks: nn.ModuleList) -> list[HeldNorm]:
    """Replace every LayerNorm and RMSNorm in the blocks by a `HeldNorm`.

    Returns:
        the new layers.

    Raises:
        ModelError: a block has neither.
    """
    found: list[HeldNorm] = []
    for block in blocks:
        places = [
            (parent, name, child)
            for parent in block.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.LayerNorm) or type(child).__name__.endswith("RMSNorm")
        ]
        if not places:
            raise ModelError(f"no LayerNorm or RMSNorm in {type(block).__name__}", remedy="give another transformer model")
        for parent, name, child in places:
            found.append(HeldNorm(child))
            setattr(parent, name, found[-1])
    return found
