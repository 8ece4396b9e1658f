"""What a language model thinks of every token that is to be learnt, with logits at no other place.

The model's own forward pass is called, so adapters, hooks, checkpointing, routers and whatever a model does between its
last layer and its head stay as they are; only its head does something else meanwhile: it looks at the rows whose next
token has a label, takes their cross-entropy in chunks, and hands back zeros that occupy no memory. If those do not come
out of the model untouched, the model does something with its logits (Gemma's soft cap, Cohere's scale), and is asked for
them as transformers means it, by `logits_to_keep`, from then on.

Foreign private API used here: the names under which torch keeps a module's hooks.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import pad

from ..ops import fast_paths
from ..ops.cross_entropy import cross_entropy, linear_cross_entropy

IGNORED = -100
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_unsuitable: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


class NextTokens(NamedTuple):
    """Every token of a batch that has a label and one before it.

    Attributes:
        loss: (N,), the cross-entropy of each of those tokens in nats, row by row.
        mask: (batch, length - 1), bool; entry [i, t] is for the token t + 1 of row i.
        output: what the model returned; its logits mean nothing.
    """

    loss: Tensor
    mask: Tensor
    output: Any


def takes(model: Any, argument: str) -> bool:
    """Whether the model below the adapter has an argument of that name."""
    return argument in inspect.signature(_base(model).forward).parameters


def score_next_tokens(
    model: Any, inputs: dict[str, Any], labels: Tensor, *, call: Callable[..., Any] | None = None
) -> NextTokens:
    """The cross-entropy of each labelled token given those before it, shifted as in transformers' `ForCausalLMLoss`.

    Args:
        model: a causal language model, adapted or not.
        inputs: of its forward pass, without the labels.
        labels: (batch, length), int64; `IGNORED` where nothing is learnt. The first column is never learnt.
        call: what to call instead of the model, where its forward method has been replaced.
    """
    mask = labels[:, 1:] != IGNORED
    wanted = labels[:, 1:][mask]
    if why_not_chunked(model) is None:
        head: Any = _head(model)
        scored = _through(head, call or model, inputs, pad(mask, (0, 1)), wanted)
        if scored is not None:
            return NextTokens(scored[0], mask, scored[1])
    seen = mask
    if takes(model, "logits_to_keep"):  # the places where some row has a label
        inputs = inputs | {"logits_to_keep": mask.any(dim=0).nonzero().squeeze(1)}
        seen = mask[:, inputs["logits_to_keep"]]
    output = (call or model)(**inputs)
    logits = output.logits[:, : seen.shape[1]]
    return NextTokens(cross_entropy(logits[seen], wanted.to(logits.device)), mask, output)


def why_not_chunked(model: Any) -> str | None:
    """Why a model's logits are made by its own head all at once; None where they are made in chunks."""
    head, weight = _head(model), getattr(_head(model), "weight", None)
    if not fast_paths.current().chunked_loss:
        return "it is turned off, or the model is being compiled"
    if type(head) is not nn.Linear:
        return f"the output layer is no plain nn.Linear, but {type(head).__name__}: adapted, quantized or sharded"
    if type(weight) is not nn.Parameter or hasattr(weight, "ds_id"):
        return f"the output layer's weight is sharded or quantized: {type(weight).__name__}"
    if any(p.requires_grad for p in head.parameters()):
        return "the output layer is trained"
    if "forward" in vars(head) or any(getattr(head, name) for name in _HOOKS):
        return "the output layer has hooks"
    return _unsuitable.get(head)


def _head(model: Any) -> nn.Module | None:
    return getattr(_base(model), "get_output_embeddings", lambda: None)()


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _through(
    head: nn.Linear, call: Callable[..., Any], inputs: dict[str, Any], mask: Tensor, wanted: Tensor
) -> tuple[Tensor, Any] | None:
    """Losses and the model's output with another head in place; None where the model has more to do with its logits."""
    seen: list[tuple[Tensor, Tensor]] = []

    def forward(hidden: Tensor) -> Tensor:
        blank = hidden.new_zeros(()).expand(*hidden.shape[:-1], head.out_features)
        if hidden.shape[:-1] == mask.shape:
            places = mask.flatten().nonzero().squeeze(1).to(hidden.device)
            rows = hidden.flatten(0, 1).index_select(0, places)
            seen.append((linear_cross_entropy(rows, head.weight, head.bias, wanted.to(hidden.device)), blank))
        return blank

    head.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    try:
        output = call(**inputs)
    finally:
        del head.forward
    if len(seen) == 1 and output.logits is seen[0][1]:
        return seen[0][0], output
    _unsuitable[head] = "the model changes its logits behind the output layer, or does not give it all positions"
    return None
