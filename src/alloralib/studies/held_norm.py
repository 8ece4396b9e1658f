"""A norm without its effect on what is added: the statistics of another pass at the same tokens are held."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ModelError


class HeldNorm(nn.Module):
    """A norm that divides by the deviation it saw when it was `recording`, at the same place: an affine map otherwise.

    Args:
        inner: a LayerNorm, or a norm by the root mean square.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.recording = inner, True
        self.eps: float = inner.eps if isinstance(inner, nn.LayerNorm) else getattr(inner, "variance_epsilon", 1e-6)
        self.held: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """As `inner` while recording."""
        centred = x - x.mean(-1, keepdim=True) if isinstance(self.inner, nn.LayerNorm) else x
        deviation = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        y = self.inner(x)
        if self.recording:
            self.held = deviation
            return y
        offset = getattr(self.inner, "bias", None)
        offset = 0.0 if offset is None else offset
        return offset + (y - offset) * (deviation / self.held)


def hold_norms(blocks: nn.ModuleList) -> list[HeldNorm]:
    """Put a `HeldNorm` in the place of every norm in the blocks.

    Raises:
        ModelError: a block has none that is known.
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
