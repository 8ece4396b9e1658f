"""The layers of a model without a batch's padding.

    padded           packed
    a a a a a a      a a a a a a b b c c c
    b b . . . .
    c c c . . .

A model's blocks treat every token by itself but for attention. So the tokens of all rows go through them side by side, as one
row without padding; for attention alone they are put back into rows, with the mask that the model has made for these. What
comes before the first block (embeddings, positions, masks) and behind the last (head, pooling, loss) sees padded rows as ever,
and so does the trainer. Loss and gradients are the same.

It takes a model of transformers whose attention is SDPA, and whose blocks hand on to it the keyword that says which tokens
there are. No table says which models do, and not all that do can (a state that runs along the row, as Mamba's, does not stop at
its end); so each is tried once, on a handful of tokens. Other packing is no substitute: TRL's `packing` puts rows of different
steps together and its `padding_free` wants FlashAttention, which a CPU has not; where positions begin anew in a row,
transformers keeps its parts apart by a mask, but attention is computed over the whole row.

Foreign private API used here: `_compiled_call_impl`, by which a torch module knows that it is compiled, and
`_attn_implementation`, by which a transformers configuration says which attention its models use.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from ..evaluation.batching import MAX_PADDING, evaluation_mode
from ..evaluation.next_token import takes
from ..ops import fast_paths
from .batches import right_padded

ATTENTION = "sdpa_of_packed_rows"
"""The attention of a model that may get packed rows; without them it is transformers' "sdpa"."""
TRIED = (5, 3, 4, 2)
"""Tokens of the rows that a model is tried on."""


class Rows(NamedTuple):
    """Where the tokens of a padded batch are.

    Attributes:
        places: (tokens,), int64; of each token, in the flattened batch.
        batch, length: of the batch with its padding.
    """

    places: Tensor
    batch: int
    length: int

    def pack(self, x: Tensor) -> Tensor:
        """(batch, length, ...) -> (1, tokens, ...); also from (1, length, ...), which is the same for all rows."""
        return _Pack.apply(x.expand(self.batch, *x.shape[1:]), self)  # pyright: ignore[reportReturnType]

    def unpack(self, x: Tensor) -> Tensor:
        """(1, tokens, ...) -> (batch, length, ...), zero where there is no token."""
        padded = x.new_zeros(self.batch * self.length, *x.shape[2:]).index_copy(0, self.places.to(x.device), x[0])
        return padded.view(self.batch, self.length, *x.shape[2:])


class _Pack(torch.autograd.Function):
    """`Rows.pack`; by itself torch would add up what comes back, as if a token could be taken twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.rows = rows
        return x.flatten(0, 1).index_select(0, rows.places.to(x.device)).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.rows.unpack(g), None


def without_padding(model: Any, inputs: dict[str, Any], *, call: Callable[..., Any]) -> dict[str, Any]:
    """The inputs of a forward pass whose blocks leave out the padding, where it is much and the model allows it.

    Args:
        model: without the wrapper of an adapter.
        inputs: of its forward pass.
        call: what is going to be called with them instead of the model.

    Returns:
        the inputs, with the keyword `packed_rows` where the padding is left out.
    """
    ids = inputs.get("input_ids")
    # asked in every process at the first batch, padded or not: with shards they have to make the same calls
    if not isinstance(ids, Tensor) or not fast_paths.current().packed or why_not_packed(model, call, ids.device) is not None:
        return inputs
    rows = rows_of(inputs)
    return inputs if rows is None else inputs | {"packed_rows": rows} | _no_cache(model)


def _no_cache(model: Any) -> dict[str, Any]:
    return {"use_cache": False} if takes(model, "use_cache") else {}


def rows_of(inputs: dict[str, Any]) -> Rows | None:
    """Where a batch's tokens are; None where there is little padding, or it is not on the right alone.

    Args:
        inputs: input_ids and attention_mask, (batch, length).
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or mask is None or ids.dim() != 2 or mask.shape != ids.shape:
        return None
    lengths = right_padded(mask)
    if lengths is None or min(lengths) < 1 or not packs(lengths):
        return None
    return Rows(mask.flatten().nonzero().squeeze(1), *ids.shape)


def packs(lengths: list[int]) -> bool:
    """Whether rows of so many tokens are packed: padding would add more than `MAX_PADDING`.

    >>> packs([9, 9, 8]), packs([9, 2, 3])
    (False, True)
    """
    return max(lengths) * len(lengths) > (1 + MAX_PADDING) * sum(lengths)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    *, packed_rows: Rows | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' SDPA attention; packed tokens, (1, heads, tokens, head size), are put back into rows for it."""
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key, value = (packed_rows.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return packed_rows.pack(output), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """In front of a block: its positions, and the hidden states where it is the first, without the padding."""
    rows: Rows | None = kwargs.get("packed_rows")
    if rows is None:
        return None
    padded = (rows.batch, rows.length)

    def pack(x: Tensor) -> Tensor:
        return rows.pack(x) if x.shape[:2] in (padded, (1, rows.length)) else x

    told = {name: tree_map_only(Tensor, pack, value) for name, value in kwargs.items() if name.startswith("position_")}
    hidden = _hidden(args, kwargs)
    if hidden.shape[:2] == padded:
        hidden = rows.pack(hidden)
    if args:
        return (hidden, *args[1:]), kwargs | told
    return args, kwargs | told | {"hidden_states": hidden}


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _leave(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Behind the last block: its hidden states in padded rows."""
    rows: Rows | None = kwargs.get("packed_rows")
    if rows is None:
        return output
    if isinstance(output, tuple):
        return rows.unpack(output[0]), *output[1:]
    return rows.unpack(output)


_reasons: weakref.WeakKeyDictionary[nn.Module, str | None] = weakref.WeakKeyDictionary()


def why_not_packed(model: Any, call: Callable[..., Any], device: torch.device) -> str | None:
    """Why a model's blocks see padding; None where they do not. The model is prepared and tried once.

    Args:
        model: a language model or a classifier, without the wrapper of an adapter.
        call: what to call instead of the model.
        device: of its inputs.
    """
    if model not in _reasons:
        _reasons[model] = _prepared(model, call, device)
    if _reasons[model] is None and model.config.get_text_config()._attn_implementation != ATTENTION:
        return "another attention has been chosen since"
    return _reasons[model]


def _prepared(model: Any, call: Callable[..., Any], device: torch.device) -> str | None:
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        return "the model has no blocks that are known to transformers"
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return f"the model's attention is {config._attn_implementation}, not sdpa"
    if getattr(config, "output_router_logits", False):
        return "the router's loss is made of all places of a batch"
    if any(share for name, share in vars(config).items() if name.endswith("layerdrop")):
        return "the model leaves out blocks by chance, maybe the last"
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return "the model is compiled: packed batches would be programs of their own"
    hooks = [block.register_forward_pre_hook(_enter, with_kwargs=True) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(_leave, with_kwargs=True))
    reason = "the trial was interrupted"
    try:
        model.set_attn_implementation(ATTENTION)
        reason = _tried(model, call, device, blocks[-1])
    except Exception as error:  # whatever a model's own code makes of it, it can still be trained on padded rows
        reason = f"the model fails on packed rows: {type(error).__name__}: {error}"
    finally:
        if reason is not None:
            model.set_attn_implementation("sdpa")
            for hook in hooks:
                hook.remove()
    return reason


def _tried(model: Any, call: Callable[..., Any], device: torch.device, last: nn.Module) -> str | None:
    config = model.config.get_text_config()
    mask = (torch.arange(max(TRIED), device=device) < torch.tensor(TRIED, device=device).unsqueeze(1)).long()
    ids = 1 + torch.arange(mask.numel(), device=device).view(mask.shape) % (config.vocab_size - 1)
    pad = getattr(config, "pad_token_id", None) or 0
    ids = torch.where(ids == pad, 0 if pad else 1, ids).masked_fill(mask == 0, pad)  # a classifier looks for the first of them
    inputs = {"input_ids": ids, "attention_mask": mask} | _no_cache(model)
    seen: list[Any] = []

    def watch(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(_hidden(args, kwargs).shape)

    watching = last.register_forward_pre_hook(watch, with_kwargs=True)
    rows = rows_of(inputs)
    assert rows is not None
    with evaluation_mode(model):
        try:
            before = call(**inputs).logits
            now = call(**inputs, packed_rows=rows).logits
        finally:
            watching.remove()
    if seen[-1][:2] != (1, sum(TRIED)):
        return "the model does not tell its blocks which tokens there are"
    if before.shape[:2] == mask.shape:  # of every place; those of the padding mean nothing
        before, now = before[mask.bool()], now[mask.bool()]
    tolerance = max(1e-3, 4 * torch.finfo(before.dtype).eps)
    if not bool((now - before).norm() <= tolerance * before.norm()):
        return "the model gives other logits on packed rows"
    return None
