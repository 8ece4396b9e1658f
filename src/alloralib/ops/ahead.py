"""The rule's scales of all layers at once, when a backward pass comes to the first of them.

A layer's row norms are a dozen calls for little work. Between products of megabytes each call finds the caches full of other
things, and takes longer than behind its like. So a layer says in its forward pass what its backward pass will need, and what
all have said is taken together: the same products for each layer, to the bit, and one scale for all rows (benchmarks/step.py
measures it).

What was taken is for that backward pass alone: the next one takes A and B as they are then. What was said is forgotten when it
has been used, or with the layer's autograd node.

Foreign private API used here: `torch._C._current_graph_task_id`, by which torch's own checkpointing knows a backward pass.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .scale import row_scales


class Coming:
    """A layer whose backward pass is to come.

    Attributes:
        factors: A, (r, n2), and B, (n1, r), both parameters.
        scale: (n1, 1), from when a backward pass has taken it until the layer uses it.
        taken_in: that pass.
    """

    __slots__ = ("__weakref__", "_kind", "_place", "factors", "scale", "taken_in")

    def __init__(self, A: Tensor, B: Tensor, eta: float) -> None:
        self.factors = A, B
        self.scale: Tensor | None = None
        self.taken_in: int | None = None
        self._kind = eta, A.device, A.dtype, B.dtype, _stream(A.device)
        self._place = places(A, B)

    def is_there(self) -> bool:
        """Whether the factors are where they were: DeepSpeed frees a parameter's memory and gathers it again."""
        return self._place == places(*self.factors)

    def waits_with(self, other: Coming) -> bool:
        """Whether its scale is to be taken in one with the other's."""
        # with checkpoints, a pass runs within a pass, and the outer one's scales are not the inner one's to take
        return self._kind == other._kind and self.taken_in == other.taken_in and self.is_there()


def places(A: Tensor, B: Tensor) -> tuple[Any, ...]:
    """Where in memory the factors are."""
    return A.data_ptr(), A.shape, B.data_ptr(), B.shape


_coming: weakref.WeakSet[Coming] = weakref.WeakSet()
_lock = threading.Lock()  # on other devices a backward pass has a thread of its own
_enabled = True


def announce(A: Tensor, B: Tensor, eta: float) -> Coming | None:
    """Say in a forward pass what its backward pass will need; for `row_scale`.

    Returns:
        None where that is not known now: under the compiler, without gradients, and for what is no parameter itself (a
        gathered or a masked one), which may be gone by then. The node must keep it, and nobody else.
    """
    if torch.compiler.is_compiling() or not _enabled or not torch.is_grad_enabled() or not (_stays(A) and _stays(B)):
        return None
    coming = Coming(A, B, eta)
    with _lock:
        _coming.add(coming)
    return coming


def _stays(factor: Tensor) -> bool:
    return type(factor) in (Tensor, Parameter) and factor.is_leaf


def _stream(device: torch.device) -> Any:
    """Where the forward pass queues its work, and its backward pass too; what is taken in one must not be used in another."""
    return torch.accelerator.current_stream(device) if device.type in ("cuda", "xpu") else None


def row_scale(A: Tensor, B: Tensor, eta: float, coming: Coming | None) -> Tensor:
    """The scale of the rows of BA, within a backward pass; with it, that of all layers that wait.

    Args:
        A: (r, n2), as the node has kept it.
        B: (n1, r).
        eta: of the scale.
        coming: what was announced of them.

    Returns:
        (n1, 1), detached, in float32 or the wider dtype of A and B.
    """
    if coming is None or torch.compiler.is_compiling() or not coming.is_there():
        return row_scales([(A, B)], eta)[0]
    this = _this_pass()
    if coming.scale is None or coming.taken_in != this:
        with _lock:
            known = list(_coming)
        waiting = [coming, *(other for other in known if other is not coming and other.waits_with(coming))]
        for other, scale in zip(waiting, row_scales([other.factors for other in waiting], eta), strict=True):
            other.scale, other.taken_in = scale, this
    scale = coming.scale
    assert scale is not None
    forget(coming)
    return scale


def forget(coming: Coming | None) -> None:
    """It has what it needs. Whoever keeps a loss keeps its nodes, and these are not to become more from step to step."""
    if coming is not None:
        coming.scale = None
        with _lock:
            _coming.discard(coming)


def _this_pass() -> int:
    """A number that no other backward pass of this process has."""
    return torch._C._current_graph_task_id()  # pyright: ignore[reportPrivateUsage]


@contextmanager
def ahead(wanted: bool) -> Generator[None]:
    """Whether the scales of all layers are taken at once while this is open; else each layer's in its own backward pass."""
    global _enabled
    before, _enabled = _enabled, wanted
    try:
        yield
    finally:
        _enabled = before
