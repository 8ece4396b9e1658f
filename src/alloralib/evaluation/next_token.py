"""The cross-entropy of the labeled tokens of a causal language model, without logits for all other tokens.

The model's own forward pass is called, so that adapters, hooks, gradient checkpointing and routers work as always. Only
the forward method of its output layer is replaced during the call: it takes the hidden states of the labeled tokens,
computes their cross-entropy in chunks, and returns the loss of every position in place of its logits. If the model returns
anything else, it does more with its logits (Gemma's soft cap, Cohere's scale). Such a model computes its own logits, from
then on, for the positions of `logits_to_keep`.

Private API used here: the names of the attributes in which torch keeps the hooks of a module.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..ops import fast_paths
from ..ops.cross_entropy import cross_entropy, linear_cross_entropy

IGNORED = -100
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_unsuitable: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


class NextTokens(NamedTuple):
    """The losses of N labeled tokens of a batch.

    Attributes:
        loss: (N,), the cross-entropy of each token in nats, row by row.
        mask: (batch, length - 1), bool, with N True entries; entry [i, t] is for token t + 1 of row i.
        output: of the model; its logits may not be used.
    """

    loss: Tensor
    mask: Tensor
    output: Any


def takes(model: Any, argument: str) -> bool:
    """Whether the model, without its adapter, has a forward argument of that name."""
    return argument in inspect.signature(_base(model).forward).parameters


def score_next_tokens(
    model: Any, inputs: dict[str, Any], labels: Tensor, *, call: Callable[..., Any] | None = None
) -> NextTokens:
    """The cross-entropy of each labeled token given those before it, shifted as in transformers' `ForCausalLMLoss`.

    Args:
        model: a causal language model, with or without an adapter.
        inputs: of its forward pass, without the labels.
        labels: (batch, length), int64; `IGNORED` for tokens without a label. The first column is not used.
        call: called instead of the model, such as the model in a wrapper for distributed training.
    """
    mask = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][mask]
    if why_not_chunked(model) is None:
        head: Any = _head(model)
        scored = _with_loss_as_logits(head, call or model, inputs, pad(mask, (0, 1)), targets)
        if scored is not None:
            return NextTokens(scored[0], mask, scored[1])
    kept = mask
    if takes(model, "logits_to_keep"):  # the positions at which any row has a label
        inputs = inputs | {"logits_to_keep": mask.any(dim=0).nonzero().squeeze(1)}
        kept = mask[:, inputs["logits_to_keep"]]
    output = (call or model)(**inputs)
    logits = output.logits[:, : kept.shape[1]]
    return NextTokens(cross_entropy(logits[kept], targets.to(logits.device)), mask, output)


def why_not_chunked(model: Any) -> str | None:
    """Why the model must compute its own logits; None if the loss is computed in chunks."""
    head, weight = _head(model), getattr(_head(model), "weight", None)
    if not fast_paths.current().chunked_loss:
        return "it is turned off, or the model is being compiled"
    if type(head) is not nn.Linear:
        return f"the output layer is not nn.Linear but {type(head).__name__}: it is adapted, quantized or sharded"
    if type(weight) is not nn.Parameter or hasattr(weight, "ds_id"):
        return f"the weight of the output layer is sharded or quantized: {type(weight).__name__}"
    if any(p.requires_grad for p in head.parameters()):
        return "the output layer is trained"
    if "forward" in vars(head) or any(getattr(head, name) for name in _HOOKS):
        return "the output layer has hooks"
    return _unsuitable.get(head)


def _head(model: Any) -> nn.Module | None:
    return getattr(_base(model), "get_output_embeddings", lambda: None)()


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _with_loss_as_logits(
    head: nn.Linear, call: Callable[..., Any], inputs: dict[str, Any], mask: Tensor, targets: Tensor
) -> tuple[Tensor, Any] | None:
    """Losses (N,) and the model's output; None if the model does more with the logits than to return them."""
    positions = mask.flatten().nonzero().squeeze(1)
    calls: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        if hidden.shape[:-1] != mask.shape:  # not all positions
            return hidden.new_zeros(()).expand(*hidden.shape[:-1], head.out_features)
        at = positions.to(hidden.device)
        labeled = hidden.flatten(0, 1).index_select(0, at)
        loss = linear_cross_entropy(labeled, head.weight, head.bias, targets.to(hidden.device))
        calls.append(loss.new_zeros(mask.numel()).index_copy(0, at, loss).view(*mask.shape, 1))
        return calls[-1]

    head.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    try:
        output = call(**inputs)
    finally:
        del head.forward
    if len(calls) == 1 and _is_same(output.logits, calls[0]):
        # read from the model's output, because DDP and FSDP track the gradients of a module's outputs
        return output.logits.flatten().index_select(0, positions.to(output.logits.device)), output
    _unsuitable[head] = "the model changes its logits after the output layer, or does not compute all of them"
    return None


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same values; DDP returns copies."""
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))
