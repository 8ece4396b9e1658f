"""Installs the fused RMS norms and gates of `ops/elementwise.py` in a model.

A module is replaced only if a trial on a few numbers shows that it computes the same; all others stay as they are. A replaced
module gets a subclass of its own class, with the same name, as `torch.nn.utils.parametrize` does it. Copies, hooks, parameter
names and files stay valid, and no other model is changed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import fast_paths
from ..ops.elementwise import gated, rms_norm


def fuse_elementwise(model: nn.Module) -> dict[str, int]:
    """Compute a model's RMS norms and gates in one autograd node each, as `allora train` does. Changes the model in place.

    This keeps less for the backward pass and makes fewer passes over memory. Outputs and gradients differ by rounding.
    `fast_paths(elementwise=False)` turns it off, and so does `torch.compile`, which fuses these operations itself.

    Args:
        model: any model, before or after it gets an adapter.

    Returns:
        the number of `norms` and `gates` that were replaced; zero in a model that computes them differently.
    """
    replaced = {"norms": 0, "gates": 0}
    for module in model.modules():
        if "forward" in vars(module) or hasattr(module, "_fused_elementwise"):  # replaced by somebody else, or by us
            continue
        for kind, forward in (("norms", _norm(module)), ("gates", _mlp(module))):
            if forward is not None:
                module.__class__ = _subclass(type(module), forward)
                replaced[kind] += 1
    return replaced


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
    # one row with squares as small as eps; means that are not zero
    probe = torch.linspace(-1, 2, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(2, -1)
    probe[0] *= eps**0.5
    agree = _agree(lambda: cls.forward(module, probe), lambda: rms_norm(probe, weight, eps))
    return _norm_of(cls) if agree else None


def _eps(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@functools.cache
def _norm_of(cls: Any) -> Any:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if self.weight.requires_grad or not fast_paths.current().elementwise:
            return cls.forward(self, hidden_states)
        return rms_norm(hidden_states, self.weight, _eps(self))

    return forward


def _mlp(module: Any) -> Any:
    cls = type(module)
    if not all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return None
    # the module's activation between three made-up layers shows what its forward pass does, without its weights
    layers = {"gate_proj": lambda x: x + 1, "up_proj": lambda x: x * 2, "down_proj": lambda x: x - 3}
    stub, probe = SimpleNamespace(act_fn=module.act_fn, **layers), torch.linspace(-3, 3, 8)
    return _mlp_of(cls) if _agree(lambda: cls.forward(stub, probe), lambda: _mlp_of(cls)(stub, probe)) else None


@functools.cache
def _mlp_of(cls: Any) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        if not fast_paths.current().elementwise:
            return cls.forward(self, x)
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))

    return forward


def _agree(theirs: Callable[[], Any], ours: Callable[[], Any]) -> bool:
    """Whether both give the same. A module that fails, because it has to be called differently, does not agree."""
    try:
        with torch.no_grad():
            torch.testing.assert_close(theirs(), ours())
    except Exception:
        return False
    return True
