"""The rule on the optimizer's step, `apply_to="update"`: the step is scaled instead of the gradient.

Adam and Adafactor divide a gradient by its own root-mean-square, and a slowly varying row factor cancels. So the scale is
decoupled from the gradient, as AdamW decouples weight decay: gradients are LoRA's own, and after the optimizer's step

    dB_i  <-  s_i dB_i                               s from the weights before the step
    dA    <-  dA * ||diag(s) B||_F / ||B||_F         (eta where B = 0)

Weight decay that the optimizer applies to the weight itself is not rescaled.

Nobody has to call anything: the first layer that trains this way installs a step hook for every torch optimizer of the
process (`torch.optim.optimizer.register_optimizer_step_*_hook`), so that a trainer which knows nothing of the rule follows it
instead of training plain LoRA.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..errors import ConfigError, LayerError
from ..ops.scale import scale
from .factors import adapter_matrices, adapter_parameters, adapter_row_norms

# Optimizers whose weight decay is part of the gradient, and those that shrink the weight by lr * weight_decay. Those that
# can do either (Adam, AdamW, NAdam, RAdam) say which in their groups, under `decoupled_weight_decay`.
_COUPLED = {"SGD", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD", "Adamax", "SparseAdam", "LBFGS"}
_DECOUPLED = {"AdamW", "Adafactor", "Muon"}


class _Step(NamedTuple):
    """What the step of one factor of one adapter is scaled by."""

    weight: Tensor  # a view into the parameter
    start: Tensor  # the weight that the gradient's step starts from: after decoupled weight decay
    factor: Tensor  # s for B, (..., n1, 1); ||diag(s) B||_F / ||B||_F for A, (..., 1, 1)


_layers: weakref.WeakSet[Any] = weakref.WeakSet()
_pending: dict[int, list[_Step]] = {}
_hooks: list[Any] = []


def track(layer: Any) -> None:
    """From now on, scale the steps of those adapters of `layer` whose rule has apply_to="update", under any torch optimizer."""
    _layers.add(layer)
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_before))
        _hooks.append(register_optimizer_step_post_hook(_after))


@torch.no_grad()
def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    steps: list[_Step] = []
    for layer in list(_layers):
        for name, variant in layer.lora_variant.items():
            rule = getattr(variant, "rule", None)
            if rule is not None and rule.apply_to == "update":
                steps += _steps(layer, name, rule.eta, optimizer, groups)
    _pending[id(optimizer)] = steps


def _steps(layer: Any, name: str, eta: float, optimizer: Optimizer, groups: dict[int, Any]) -> Iterator[_Step]:
    parameters = adapter_parameters(layer, name)
    assert parameters is not None
    if not any(id(parameter) in groups for parameter in parameters):
        return
    if isinstance(parameters[1], DTensor):
        raise LayerError(
            "apply_to='update' does not support sharded parameters", remedy="use apply_to='gradient', or train unsharded"
        )
    A, B = adapter_matrices(layer, name)
    s = scale(adapter_row_norms(layer, name), eta).unsqueeze(-1)
    wide = B.to(s.dtype)
    norm = torch.linalg.matrix_norm(wide, keepdim=True)
    ratio = torch.where(norm > 0, torch.linalg.matrix_norm(s * wide, keepdim=True) / norm, eta)
    for parameter, weight, factor in zip(parameters, (A, B), (ratio, s), strict=True):
        if group := groups.get(id(parameter)):
            yield _Step(weight, weight.to(s.dtype, copy=True).mul_(1 - _decay(optimizer, group)), factor)


@torch.no_grad()
def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for weight, start, factor in _pending.pop(id(optimizer), []):
        weight.copy_(start + factor * (weight - start))


def _decay(optimizer: Optimizer, group: dict[str, Any]) -> float:
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
        f"cannot tell how {type(optimizer).__name__} applies weight_decay={weight_decay}, so apply_to='update' cannot "
        "exclude it from the rescaling",
        remedy="set weight_decay=0 for the adapter's parameters, or use apply_to='gradient'",
    )
