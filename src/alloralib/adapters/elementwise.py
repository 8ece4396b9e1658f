"""A frozen model's RMS norms, rotary embeddings and gates in an autograd node each (`ops/elementwise.py`).

A part is replaced where a trial shows it to be what that computes; any other stays as it is. A module that is gets a subclass
of its own class, of the same name, as `torch.nn.utils.parametrize` does it: copies, hooks, names of parameters and files stay
what they are, and no other model is touched.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.elementwise import gated, rms_norm, rotary
from .siblings import fuses_elementwise

_ROTARY = "apply_rotary_pos_emb"
"""The name under which the models of transformers know the rotary embedding."""


def fuse_elementwise(model: nn.Module) -> dict[str, int]:
    """Have a model's RMS norms, rotary embeddings and gates computed in a node each, as `allora train` does.

    Less is kept for the backward pass, and less memory read and written. Outputs and gradients differ by rounding.
    `fast_paths(elementwise=False)` turns it off, and so does `torch.compile`, which fuses them by itself.

    Args:
        model: any, with its adapter or before.

    Returns:
        how many of each were replaced: `norms`, `rotary` and `gates`; none in a model that writes them in another way.
    """
    found = {"norms": 0, "rotary": 0, "gates": 0}
    for module in model.modules():
        if "forward" in vars(module) or hasattr(module, "_fused_elementwise"):  # somebody else's already, or ours
            continue
        for what, forward in (("norms", _norm(module)), ("rotary", _attention(type(module))), ("gates", _mlp(module))):
            if forward is not None:
                module.__class__ = _subclass(type(module), forward)
                found[what] += 1
    return found


@functools.cache
def _subclass(cls: type[nn.Module], forward: Any) -> type[nn.Module]:
    return type(cls.__name__, (cls,), {"forward": forward, "_fused_elementwise": True, "__module__": cls.__module__})


def _norm(module: Any) -> Any:
    cls, weight, eps = type(module), getattr(module, "weight", None), _eps(module)
    if not cls.__name__.endswith("RMSNorm") or len(list(module.parameters())) != 1 or not isinstance(eps, float):
        return None
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not weight.numel() or weight.is_meta:
        return None
    if len(inspect.signature(cls.forward).parameters) != 2:
        return None
    # a row whose squares are as small as eps, and means that are not zero
    probe = torch.linspace(-1, 2, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(2, -1)
    probe[0] *= eps**0.5
    agree = _agree(lambda: cls.forward(module, probe), lambda: rms_norm(probe, weight, eps))
    return _norm_of(cls) if agree else None


def _eps(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@functools.cache
def _norm_of(cls: Any) -> Any:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if self.weight.requires_grad or not fuses_elementwise():
            return cls.forward(self, hidden_states)
        return rms_norm(hidden_states, self.weight, _eps(self))

    return forward


@functools.cache
def _attention(cls: Any) -> Any:
    """The forward pass of an attention with another rotary embedding, or None where it has none that is Llama's."""
    own: Any = cls.forward
    if not isinstance(own, types.FunctionType) or _ROTARY not in own.__code__.co_names:
        return None
    theirs = own.__globals__.get(_ROTARY)
    if theirs is None or not _rotates(theirs):
        return None

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        alike = len({t.dtype for t in (q, k, cos, sin)}) == 1 and q.shape[-1] == k.shape[-1] == cos.shape[-1]
        if rest or named or not alike or cos.requires_grad:
            return theirs(q, k, cos, sin, *rest, **named)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return rotary(q, cos, sin), rotary(k, cos, sin)

    # `forward` looks the function up among the globals of its file, which are other models' too: this one gets its own
    fused = types.FunctionType(
        own.__code__, {**own.__globals__, _ROTARY: rotate}, own.__name__, own.__defaults__, own.__closure__
    )
    fused.__kwdefaults__ = own.__kwdefaults__

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:  # the compiler cannot follow `fused`
        return fused(*args, **kwargs) if fuses_elementwise() else own(*args, **kwargs)

    return forward


def _rotates(theirs: Any) -> bool:
    """Whether a function is the rotary embedding as Llama has it."""
    q = torch.linspace(-1, 2, 2 * 3 * 4).view(1, 2, 3, 4)
    cos, sin = torch.linspace(-1, 1, 12).view(1, 3, 4), torch.linspace(1, -2, 12).view(1, 3, 4)
    ours = tuple(rotary(x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (q, q + 1))
    return _agree(lambda: theirs(q, q + 1, cos, sin), lambda: ours)


class _Stub:
    """An MLP whose three layers are none: what it makes of them is seen without its weights."""

    def __init__(self, mlp: Any) -> None:
        self.act_fn = mlp.act_fn

    def gate_proj(self, x: Tensor) -> Tensor:
        return x + 1

    def up_proj(self, x: Tensor) -> Tensor:
        return x * 2

    def down_proj(self, x: Tensor) -> Tensor:
        return x - 3


def _mlp(module: Any) -> Any:
    cls = type(module)
    if not all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return None
    stub, probe = _Stub(module), torch.linspace(-3, 3, 8)
    return _mlp_of(cls) if _agree(lambda: cls.forward(stub, probe), lambda: _mlp_of(cls)(stub, probe)) else None


@functools.cache
def _mlp_of(cls: Any) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        if not fuses_elementwise():
            return cls.forward(self, x)
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))

    return forward


def _agree(theirs: Callable[[], Any], ours: Callable[[], Any]) -> bool:
    """Whether the two give the same; what fails, because it wants to be called in another way, is something else."""
    try:
        with torch.no_grad():
            torch.testing.assert_close(theirs(), ours())
    except Exception:
        return False
    return True
