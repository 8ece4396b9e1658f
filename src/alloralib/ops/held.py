"""The rule's scale once per optimizer step, where the gradients of several batches add up to one step.

s depends on A and B alone, which stay as they are from one optimizer step to the next. Only the one who writes the training
loop knows that: a write to `parameter.data` leaves no trace in torch. So this is opened, and not guessed:

    with hold_row_scales():
        trainer.train()

What is held is forgotten when an optimizer of torch has stepped, and a scale is taken anew where a factor was written to in
place.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .ahead import Coming, forget, places, row_scale


class _Held(NamedTuple):
    A: Tensor  # kept alive, so that no other tensor can stand at its address
    B: Tensor
    state: tuple[int, int, float]  # how often each was written to in place, and eta
    scale: Tensor


_held: dict[tuple[Any, ...], _Held] | None = None
_allowed = True


def once_per_step(A: Tensor, B: Tensor, eta: float, coming: Coming | None = None) -> Tensor:
    """The scale of the rows of BA; while `hold_row_scales` is open, as it was since the last optimizer step.

    Args:
        A: (r, n2); parameters or views of them are known again, what was made for this pass is not.
        B: (n1, r). Both may have leading dimensions.
        eta: of the scale.
        coming: what the forward pass has announced of them.

    Returns:
        (n1, 1), in float32 or wider.
    """
    if torch.compiler.is_compiling() or _held is None or not (_lasts(A) and _lasts(B)):
        return row_scale(A, B, eta, coming)
    key = places(A, B)
    state = (A._version, B._version, eta)
    known = _held.get(key)
    # where the known factors are is asked for anew: FSDP frees a parameter's memory and leaves the tensor
    if known is None or known.state != state or places(known.A, known.B) != key:
        known = _held[key] = _Held(A, B, state, row_scale(A, B, eta, coming))
    else:
        forget(coming)
    return known.scale


def _lasts(factor: Tensor) -> bool:
    return factor.requires_grad or factor._is_view()


@contextmanager
def hold_row_scales() -> Generator[None]:
    """Take the row norms of BA and their scale once per optimizer step, not once per backward pass, while this is open.

    For loops that add up the gradients of several batches; a whole training may run within. Holds n1 numbers per layer.
    A change of A or B between two backward passes is seen if an optimizer of torch made it, or an operation in place
    (`with torch.no_grad(): p.add_(...)`); a write to `p.data` by hand is not. Compiled layers hold nothing.
    """
    global _held
    if not _allowed:
        yield
        return
    before, _held = _held, {}
    hook = register_optimizer_step_post_hook(_forget)
    try:
        yield
    finally:
        hook.remove()
        _held = before


def _forget(*_: Any) -> None:
    if _held is not None:
        _held.clear()


@contextmanager
def holding(allowed: bool) -> Generator[None]:
    """Whether scales may be held while this is open."""
    global _held, _allowed
    before, _allowed = (_held, _allowed), allowed
    if not allowed:
        _held = None
    try:
        yield
    finally:
        _held, _allowed = before
