"""The switches of the fast paths: one object, read wherever a fast path is taken."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FastPaths:
    """Which fast paths may be taken; the attributes are the arguments of `fast_paths` (chunked_loss is its `logits`)."""

    fused: bool = True
    chunked_loss: bool = True
    packed: bool = True
    elementwise: bool = True
    onednn: bool | None = None


_eager = FastPaths()
_compiled = FastPaths(chunked_loss=False, packed=False, elementwise=False, onednn=False)


def current() -> FastPaths:
    """The switches in force here and now. Inside `torch.compile`, which does the rest itself, only `fused` can be on."""
    return _compiled if torch.compiler.is_compiling() else _eager


@contextmanager
def fast_paths(
    *,
    fused: bool = True,
    logits: bool = True,
    packed: bool = True,
    elementwise: bool = True,
    onednn: bool | None = None,
) -> Generator[None]:
    """Turn fast paths off, or on again, inside a `with` block. Results differ by rounding only.

    Args:
        fused: compute a linear layer and its adapter in one autograd node. Off: PEFT's own forward pass, and the low-rank
            branch beside it.
        logits: compute a language model's loss in chunks, without its full logits. Off: the model's own output layer.
        packed: `allora train` removes padding from a batch between attention layers. Off: every row is padded to the longest
            row of its batch.
        elementwise: use the fused RMS norms and gates that `fuse_elementwise` installed. Off: the model's own.
        onednn: True computes large float32 products on CPUs with oneDNN, False with torch's default, and None with whichever
            is faster on this processor (`ops/matmul.py`).
    """
    global _eager, _compiled
    before = _eager, _compiled
    _eager = FastPaths(fused, logits, packed, elementwise, onednn)
    _compiled = FastPaths(fused, chunked_loss=False, packed=False, elementwise=False, onednn=False)
    try:
        yield
    finally:
        _eager, _compiled = before
