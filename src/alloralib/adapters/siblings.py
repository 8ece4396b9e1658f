"""Layers that read the same input are computed together: queries, keys and values; gate and up.

Siblings are known by their names within one module. The first of them computes all, and the others hand out what is
waiting for them if they are called with the very same, unchanged tensor; where one is not, it computes for itself. That
a group is there from the first call on matters: gradient checkpointing computes a layer twice, and has to find the same
operations both times.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import products
from ..ops.ahead import ahead as taken_ahead
from ..ops.held import holding

SETS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
"""Names of layers that read the same input where they stand in one module, in the order of their calls."""

_CROSS = ("encoder_attn", "encdecattention", "cross", "attn2")
"""Where queries read another input than keys and values do."""

_enabled = {"fused": True, "grouped": True, "logits": True, "packed": True, "elementwise": True}


@contextmanager
def fast_paths(
    *,
    fused: bool = True,
    grouped: bool = True,
    logits: bool = True,
    packed: bool = True,
    elementwise: bool = True,
    onednn: bool | None = None,
    ahead: bool = True,
    held: bool = True,
) -> Any:
    """Turn fast paths off, or on again, within a `with` block.

    Args:
        fused: frozen layer and adapter in one autograd node; without, PEFT's own forward pass and our branch beside it.
        grouped: layers that read the same input in one autograd node; needs `fused`.
        logits: a language model's loss without its logits, in chunks; without, what the model's own head makes of it.
        packed: a batch's tokens without its padding between the layers in `allora train`; without, each row padded to its
            batch's longest.
        elementwise: RMS norms, rotary embeddings and gates in a node each, where `fuse_elementwise` has put them, as
            `allora train` does; without, as the model has them.
        onednn: the larger float32 products by oneDNN on CPUs, or by torch's default; None takes what is faster on the
            processor (`ops/products.py`).
        ahead: the row norms of all layers at once, when a backward pass comes to the first of them; without, each layer's
            in its own turn.
        held: the row norms once per optimizer step where `hold_row_scales` asks for it; without, in every backward pass.
    """
    before = dict(_enabled)
    _enabled.update(fused=fused, grouped=fused and grouped, logits=logits, packed=packed, elementwise=elementwise)
    try:
        with products.onednn(onednn), taken_ahead(ahead), holding(held):
            yield
    finally:
        _enabled.update(before)


def fused() -> bool:
    """Whether frozen layer and adapter may share an autograd node."""
    return _enabled["fused"]


def chunked_logits() -> bool:
    """Whether the loss of a language model may be taken without its logits, here and now."""
    return _enabled["logits"] and not torch.compiler.is_compiling()


def packs_rows() -> bool:
    """Whether a batch's padding may be left out between the layers, here and now."""
    return _enabled["packed"] and not torch.compiler.is_compiling()


def fuses_elementwise() -> bool:
    """Whether what stands between the linear layers may take a node of ours, here and now."""
    return _enabled["elementwise"] and not torch.compiler.is_compiling()


class Group:
    """Layers that read the same input, in the order of their calls.

    Attributes:
        waiting: outputs that their layers have not asked for yet, by the layer's id.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._layers = [weakref.ref(layer) for layer in layers]
        self.waiting: dict[int, Tensor] = {}
        self._input: tuple[Tensor, int, tuple[Any, ...]] | None = None

    def layers(self) -> list[Any]:
        """Those that are still there."""
        return [layer for ref in self._layers if (layer := ref()) is not None]

    def is_first(self, layer: Any) -> bool:
        """Whether the others are computed when this one is."""
        return self._layers[0]() is layer

    def put(self, x: Tensor, outputs: dict[int, Tensor]) -> None:
        """Keep outputs for the layers that are about to be called with `x`."""
        self.waiting, self._input = outputs, (x, x._version, _mode()) if outputs else None

    def take(self, layer: Any, x: Tensor) -> Tensor | None:
        """The output that waits for `layer`, if `x` is the input it was made from and nothing has changed since."""
        output, known = self.waiting.pop(id(layer), None), self._input
        if not self.waiting:
            self._input = None
        if output is None or known is None or known[0] is not x or known[1:] != (x._version, _mode()):
            return None
        return output


def introduce(parent: nn.Module, path: str) -> None:
    """Make the layers of `parent` that read the same input known to each other; again after each one that is adapted.

    Args:
        path: the parent's name in the model.
    """
    for names in SETS:
        if any(part in path.lower() for part in _CROSS):
            names = names[1:]
        children: list[Any] = [getattr(parent, name, None) for name in names]
        members = [child for child in children if hasattr(child, "group")]
        if len(members) > 1:
            group = Group(members)
            for member in members:
                member.group = group


def grouped() -> bool:
    """Whether siblings may be computed together, here and now."""
    return _enabled["grouped"] and not torch.compiler.is_compiling()


def _mode() -> tuple[Any, ...]:
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
