"""The decoupled rule, `apply_to="update"`: the optimizer's step is scaled instead of the gradient.

Adam and Adafactor divide a gradient by its own root-mean-square, and a slowly varying row factor cancels. So, as AdamW
takes weight decay out of the gradient, this takes the scale out of it: gradients are LoRA's own, and after the step

    dB_i  <-  s_i dB_i                                s from the weights before the step
    dA    <-  dA * ||diag(s) B||_F / ||B||_F           (eta where B = 0)

Weight decay that the optimizer applies to the weight itself is left out of the rescaling.

Nothing has to be called: the first layer that trains this way installs a step hook for every torch optimizer of the
process (`torch.optim.optimizer.register_optimizer_step_*_hook`), so a trainer that never heard of the rule follows it
instead of training plain LoRA.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..errors import ConfigError, LayerError
from ..ops.scale import scale

# Optimizers whose weight decay is part of the gradient, and those that shrink the weight by lr * weight_decay. The ones
# that do either say so themselves in their groups (`decoupled_weight_decay`: Adam, AdamW, NAdam, RAdam).
_COUPLED = {"SGD", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD", "Adamax", "SparseAdam", "LBFGS"}
_DECOUPLED = {"AdamW", "Adafactor", "Muon"}


class _Step(NamedTuple):
    """The state of one adapter of one layer before an optimizer's step."""

    A: Tensor | None  # views of the parameters, None where this optimizer does not hold them
    B: Tensor | None
    kept_A: Tensor | None  # the weights that the step starts from, after decoupled weight decay
    kept_B: Tensor | None
    rows: Tensor  # (..., n1, 1), s
    ratio: Tensor  # (..., 1, 1)


_layers: weakref.WeakSet[Any] = weakref.WeakSet()
_pending: dict[int, list[_Step]] = {}
_hooks: list[Any] = []


def track(layer: Any) -> None:
    """Scale the steps of `layer`'s adapters that ask for it, from now on, under any torch optimizer."""
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
            if getattr(variant, "apply_to", None) == "update":
                step = _note(layer, name, variant.eta, optimizer, groups)
                if step is not None:
                    steps.append(step)
    _pending[id(optimizer)] = steps


def _note(layer: Any, name: str, eta: float, optimizer: Optimizer, groups: dict[int, Any]) -> _Step | None:
    param_A, param_B = layer.adapter_parameters(name)
    group_A, group_B = groups.get(id(param_A)), groups.get(id(param_B))
    if group_A is None and group_B is None:
        return None
    if isinstance(param_B, DTensor):
        raise LayerError(
            "apply_to='update' does not know sharded parameters", remedy="use apply_to='gradient', or train unsharded"
        )
    A, B = layer.factor_views(name)
    s = scale(layer.adapter_row_norms(name), eta).unsqueeze(-1)
    wide = B.to(s.dtype)
    norm = torch.linalg.matrix_norm(wide, keepdim=True)
    ratio = torch.where(norm > 0, torch.linalg.matrix_norm(s * wide, keepdim=True) / norm, torch.full_like(norm, eta))
    return _Step(
        A if group_A is not None else None,
        B if group_B is not None else None,
        None if group_A is None else A.to(s.dtype, copy=True).mul_(1 - _decay(optimizer, group_A)),
        None if group_B is None else B.to(s.dtype, copy=True).mul_(1 - _decay(optimizer, group_B)),
        s,
        ratio,
    )


@torch.no_grad()
def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for step in _pending.pop(id(optimizer), []):
        if step.A is not None and step.kept_A is not None:
            step.A.copy_(step.kept_A + step.ratio * (step.A - step.kept_A))
        if step.B is not None and step.kept_B is not None:
            step.B.copy_(step.kept_B + step.rows * (step.B - step.kept_B))


def _decay(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """The share by which this step shrinks the weights themselves, apart from the gradient's step."""
    weight_decay = group.get("weight_decay", 0) or 0
    if weight_decay == 0:
        return 0.0
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    # transformers' Adafactor can replace the learning rate by one of its own, which the group does not show
    own_rate = group.get("relative_step") or group.get("scale_parameter")
    if group.get("decoupled_weight_decay", bool(names & _DECOUPLED)) and not own_rate:
        return float(group["lr"]) * weight_decay
    if "decoupled_weight_decay" in group or names & _COUPLED:
        return 0.0
    raise ConfigError(
        f"cannot tell how {type(optimizer).__name__} applies weight_decay={weight_decay}, so the update rule cannot leave it "
        "out",
        remedy="set weight_decay=0 for the adapter's parameters, or use apply_to='gradient'",
    )
