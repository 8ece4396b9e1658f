"""The rule on the optimizer's step, `apply_to="update"` and `"relative"`: the step is scaled instead of the gradient.

Adam and Adafactor divide a gradient by its own root-mean-square, and a slowly varying row factor cancels. So the scale is
decoupled from the gradient, as AdamW decouples weight decay: gradients are LoRA's own, and after the optimizer's step

    dB_i  <-  c s_i dB_i                             s from the weights before the step
    dA    <-  c dA * ||diag(s) B||_F / ||B||_F       (the largest s where B = 0)

    "update"      c = 1, and s is the rule's scale
    "relative"    c makes the step a share of W, and s is the rule's scale over eta, on row norms relative to W's
                  (ops/relative.py)

Weight decay that the optimizer applies to the weight itself is not rescaled.

Nobody has to call anything: the first layer that trains this way installs a step hook for every torch optimizer of the
process (`torch.optim.optimizer.register_optimizer_step_*_hook`), so that a trainer which knows nothing of the rule follows it
instead of training plain LoRA.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..errors import ConfigError, LayerError
from ..ops.relative import change_norm, step_factor, taper
from ..ops.scale import scale
from .factors import adapter_matrices, adapter_parameters, adapter_row_norms, expanded, weight_row_norms
from .rule import Rule

# Optimizers whose weight decay is part of the gradient, and those that shrink the weight by lr * weight_decay. Those that
# can do either (Adam, AdamW, NAdam, RAdam) say which in their groups, under `decoupled_weight_decay`.
_COUPLED = {"SGD", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD", "Adamax", "SparseAdam", "LBFGS"}
_DECOUPLED = {"AdamW", "Adafactor", "Muon"}


@dataclass(frozen=True)
class _Part:
    """One factor, A or B, of an adapter that is about to take a step."""

    weight: Tensor  # a view into the parameter
    start: Tensor  # the weight that the gradient's step starts from: after decoupled weight decay
    factor: Tensor  # s for B, (..., n1, 1); ||diag(s) B||_F / ||B||_F for A, (..., 1, 1)
    trained: bool  # whether this optimizer moves it


@dataclass(frozen=True)
class _Step:
    """An adapter that is about to take a step, and what the step is multiplied by."""

    layer: Any
    A: _Part
    B: _Part
    weight_norms: Tensor | None  # ||W_i|| for a relative step, else None
    rate: float  # of the optimizer

    def rescale(self) -> None:
        """Scale the step that the optimizer has just taken."""
        c: Tensor | float = 1.0
        steps = self.A.weight - self.A.start, self.B.weight - self.B.start
        if self.weight_norms is not None:
            starts = expanded(self.layer, self.A.start, self.B.start)
            change = change_norm(*starts, *expanded(self.layer, *steps))
            c = step_factor(change, self.weight_norms, self.rate)
        for part, step in zip((self.A, self.B), steps, strict=True):
            if part.trained:
                part.weight.copy_(part.start + c * part.factor * step)


_layers: weakref.WeakSet[Any] = weakref.WeakSet()
_weight_norms: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()
_pending: dict[int, list[_Step]] = {}
_hooks: list[Any] = []


def track(layer: Any) -> None:
    """From now on, scale the steps of those adapters of `layer` whose rule acts on the step, under any torch optimizer."""
    _layers.add(layer)
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_before))
        _hooks.append(register_optimizer_step_post_hook(_after))


def row_factors(layer: Any, name: str, rule: Rule) -> Tensor:
    """s of adapter `name`: the factor that the rule gives to every row of BA, (..., n1), in float32 or wider.

    Raises:
        LayerError: a factor is sharded at this moment.
    """
    norms = adapter_row_norms(layer, name)
    return taper(norms, _norms_of_weight(layer), rule.eta) if rule.apply_to == "relative" else scale(norms, rule.eta)


def _norms_of_weight(layer: Any) -> Tensor:
    """||W_i||, computed once: the weight is frozen."""
    if layer not in _weight_norms:
        _weight_norms[layer] = weight_row_norms(layer)
    return _weight_norms[layer]


@torch.no_grad()
def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    steps: list[_Step] = []
    for layer in list(_layers):
        for name, variant in layer.lora_variant.items():
            rule = getattr(variant, "rule", None)
            if rule is not None and rule.scales_step:
                steps += _steps(layer, name, rule, optimizer, groups)
    _pending[id(optimizer)] = steps


def _steps(layer: Any, name: str, rule: Rule, optimizer: Optimizer, groups: dict[int, Any]) -> list[_Step]:
    parameters = adapter_parameters(layer, name)
    assert parameters is not None
    own = [groups.get(id(parameter)) for parameter in parameters]
    if not any(own):
        return []
    if isinstance(parameters[1], DTensor):
        raise LayerError(
            f"apply_to={rule.apply_to!r} does not support sharded parameters",
            remedy="use apply_to='gradient', or train unsharded",
        )
    A, B = adapter_matrices(layer, name)
    s = row_factors(layer, name, rule).unsqueeze(-1)
    wide = B.to(s.dtype)
    norm = torch.linalg.matrix_norm(wide, keepdim=True)
    ratio = torch.where(norm > 0, torch.linalg.matrix_norm(s * wide, keepdim=True) / norm, s.amax(dim=-2, keepdim=True))
    parts: list[_Part] = []
    for weight, factor, group in zip((A, B), (ratio, s), own, strict=True):
        decay = _decay(optimizer, group, rule) if group else 0.0
        parts.append(_Part(weight, weight.to(s.dtype, copy=True).mul_(1 - decay), factor, trained=group is not None))
    relative = rule.apply_to == "relative"
    rate = _rate(optimizer, own[1] or own[0]) if relative else 0.0  # B's: where the rates differ, B's is the larger
    return [_Step(layer, *parts, weight_norms=_norms_of_weight(layer) if relative else None, rate=rate)]


def _rate(optimizer: Optimizer, group: Any) -> float:
    """The learning rate of a group, which a relative step takes as the share of W that a step changes."""
    rate = group.get("lr")
    if rate is None or group.get("relative_step"):
        what = f"apply_to='relative' needs a learning rate, and {type(optimizer).__name__} chooses its own"
        raise ConfigError(what, remedy="give the optimizer a learning rate (relative_step=False)")
    return float(rate)


@torch.no_grad()
def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for step in _pending.pop(id(optimizer), []):
        step.rescale()


def _decay(optimizer: Optimizer, group: dict[str, Any], rule: Rule) -> float:
    """The fraction by which this step shrinks the weights themselves, apart from the gradient's step."""
    weight_decay = group.get("weight_decay", 0) or 0
    if weight_decay == 0:
        return 0.0
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    # transformers' Adafactor can use a learning rate of its own, which the group does not show
    own_rate = group.get("relative_step") or group.get("scale_parameter")
    if group.get("decoupled_weight_decay", bool(names & _DECOUPLED)) and not own_rate:
        return float(group["lr"]) * weight_decay
    if "decoupled_weight_decay" in group or names & _COUPLED:
        return 0.0
    raise ConfigError(
        f"cannot tell how {type(optimizer).__name__} applies weight_decay={weight_decay}, so apply_to={rule.apply_to!r} cannot "
        "exclude it from the rescaling",
        remedy="set weight_decay=0 for the adapter's parameters, or use apply_to='gradient'",
    )
