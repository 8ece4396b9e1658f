"""Runs a model's layers on the tokens of a batch without its padding.

    padded           packed
    a a a a a a      a a a a a a b b c c c
    b b . . . .
    c c c . . .

A model's blocks treat every token by itself, except in attention. So the tokens of all rows go through the blocks as one
row without padding, and only for attention are they put back into rows, with the mask that the model made for these. What
comes before the first block (embeddings, positions, masks) and after the last (head, pooling, loss) sees padded rows as
before. Loss and gradients are the same.

This needs a transformers model with SDPA attention whose blocks pass an unknown keyword on to attention. Not every model
that does so can be packed (in Mamba, a state runs along the row), so each model is tried once on a few tokens.

Other ways of packing do not replace this one. TRL's `packing` puts rows of different steps together. Its `padding_free`
needs FlashAttention, which CPUs do not have. Position ids that restart within a row make transformers mask attention
between the parts, but attention is then still computed over the whole row.

Private API used here: torch's `Module._compiled_call_impl` (whether a module is compiled) and transformers'
`config._attn_implementation` (which attention a model uses).
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

ATTENTION = "sdpa_of_packed_rows"
"""The attention of a model that can take packed rows. On padded rows it is transformers' "sdpa"."""
TRIED = (5, 3, 4, 2)
"""Tokens of the rows that a model is tried on."""


class Rows(NamedTuple):
    """The positions of the tokens in a padded batch.

    Attributes:
        places: (tokens,), int64; of each token in the flattened batch.
        batch, length: shape of the padded batch.
    """

    places: Tensor
    batch: int
    length: int

    def pack(self, x: Tensor) -> Tensor:
        """(batch, length, ...) -> (1, tokens, ...); also from (1, length, ...), the same for all rows."""
        return _Pack.apply(x.expand(self.batch, *x.shape[1:]), self)  # pyright: ignore[reportReturnType]

    def unpack(self, x: Tensor) -> Tensor:
        """(1, tokens, ...) -> (batch, length, ...), zero at padding."""
        padded = x.new_zeros(self.batch * self.length, *x.shape[2:]).index_copy(0, self.places.to(x.device), x[0])
        return padded.view(self.batch, self.length, *x.shape[2:])


class _Pack(torch.autograd.Function):
    """`Rows.pack`. Without it, torch's backward pass would accumulate, as if a token could be taken twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.rows = rows
        return x.flatten(0, 1).index_select(0, rows.places.to(x.device)).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.rows.unpack(g), None


def without_padding(model: Any, inputs: dict[str, Any], *, call: Callable[..., Any]) -> dict[str, Any]:
    """The inputs of a forward pass, changed so that the blocks skip the padding if there is much of it.

    Args:
        model: without the adapter's wrapper. Its attention and hooks are set up at the first call.
        inputs: of its forward pass.
        call: what is called with the result (the wrapped model).

    Returns:
        the inputs, with the keyword `packed_rows` where padding is skipped.
    """
    ids = inputs.get("input_ids")
    # tried at the first batch in every process, padded or not: with sharded weights all processes must make the same calls
    if not isinstance(ids, Tensor) or not fast_paths.current().packed or why_not_packed(model, call, ids.device) is not None:
        return inputs
    rows = rows_of(inputs)
    return inputs if rows is None else inputs | {"packed_rows": rows} | _no_cache(model)


def _no_cache(model: Any) -> dict[str, Any]:
    return {"use_cache": False} if takes(model, "use_cache") else {}


def rows_of(inputs: dict[str, Any]) -> Rows | None:
    """The positions of a batch's tokens; None if there is little padding, or it is not on the right only.

    Args:
        inputs: input_ids and attention_mask, (batch, length).
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or mask is None or ids.dim() != 2 or mask.shape != ids.shape or bool((mask[:, 1:] > mask[:, :-1]).any()):
        return None
    lengths: list[int] = mask.sum(dim=1).tolist()
    if min(lengths) < 1 or not packs(lengths):
        return None
    return Rows(mask.flatten().nonzero().squeeze(1), *ids.shape)


def packs(lengths: list[int]) -> bool:
    """Whether rows of these numbers of tokens are packed: padding would add more than `MAX_PADDING`.

    >>> packs([9, 9, 8]), packs([9, 2, 3])
    (False, True)
    """
    return max(lengths) * len(lengths) > (1 + MAX_PADDING) * sum(lengths)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    *, packed_rows: Rows | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' SDPA attention, with packed tokens, (1, heads, tokens, head size), put back into rows for it."""
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key, value = (packed_rows.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return packed_rows.pack(output), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Pre-hook of every block: packs its positions and, before the first block, the hidden states."""
    rows: Rows | None = kwargs.get("packed_rows")
    if rows is None:
        return None
    padded = (rows.batch, rows.length)

    def pack(x: Tensor) -> Tensor:
        return rows.pack(x) if x.shape[:2] in (padded, (1, rows.length)) else x

    positions = {name: tree_map_only(Tensor, pack, value) for name, value in kwargs.items() if name.startswith("position_")}
    hidden = _hidden(args, kwargs)
    if hidden.shape[:2] == padded:
        hidden = rows.pack(hidden)
    if args:
        return (hidden, *args[1:]), kwargs | positions
    return args, kwargs | positions | {"hidden_states": hidden}


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _leave(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Hook of the last block: puts the hidden states back into padded rows."""
    rows: Rows | None = kwargs.get("packed_rows")
    if rows is None:
        return output
    return (rows.unpack(output[0]), *output[1:]) if isinstance(output, tuple) else rows.unpack(output)


_reasons: weakref.WeakKeyDictionary[nn.Module, str | None] = weakref.WeakKeyDictionary()


def why_not_packed(model: Any, call: Callable[..., Any], device: torch.device) -> str | None:
    """Why a model's blocks see padding; None if they do not. The first call sets the model up and tries it.

    Args:
        model: a language model or a classifier, without the adapter's wrapper.
        call: what is called instead of the model.
        device: of its inputs.
    """
    if model not in _reasons:
        _reasons[model] = _set_up(model, call, device)
    if _reasons[model] is None and model.config.get_text_config()._attn_implementation != ATTENTION:
        return "another attention was chosen since"
    return _reasons[model]


def _set_up(model: Any, call: Callable[..., Any], device: torch.device) -> str | None:
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        return "the model has no blocks that transformers marks as such"
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return f"the model's attention is {config._attn_implementation}, not sdpa"
    if getattr(config, "output_router_logits", False):
        return "the router's loss is computed from all positions of a batch"
    if any(share for name, share in vars(config).items() if name.endswith("layerdrop")):
        return "the model drops blocks at random, perhaps the last one"
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return "the model is compiled, and packed batches would be compiled apart"
    hooks = [block.register_forward_pre_hook(_enter, with_kwargs=True) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(_leave, with_kwargs=True))
    reason = "the trial was interrupted"
    try:
        model.set_attn_implementation(ATTENTION)
        reason = _try(model, call, device, blocks[-1])
    except Exception as error:  # whatever the model's own code raises, it can still be trained on padded rows
        reason = f"the model fails on packed rows: {type(error).__name__}: {error}"
    finally:
        if reason is not None:
            model.set_attn_implementation("sdpa")
            for hook in hooks:
                hook.remove()
    return reason


def _try(model: Any, call: Callable[..., Any], device: torch.device, last: nn.Module) -> str | None:
    """Compare the logits of a few tokens, padded and packed."""
    config = model.config.get_text_config()
    mask = (torch.arange(max(TRIED), device=device) < torch.tensor(TRIED, device=device).unsqueeze(1)).long()
    ids = 1 + torch.arange(mask.numel(), device=device).view(mask.shape) % (config.vocab_size - 1)
    pad = getattr(config, "pad_token_id", None) or 0
    ids = torch.where(ids == pad, 0 if pad else 1, ids).masked_fill(mask == 0, pad)  # classifiers look for the padding token
    inputs = {"input_ids": ids, "attention_mask": mask} | _no_cache(model)
    shapes: list[Any] = []

    def watch(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shapes.append(_hidden(args, kwargs).shape)

    watching = last.register_forward_pre_hook(watch, with_kwargs=True)
    rows = rows_of(inputs)
    assert rows is not None
    with evaluation_mode(model):
        try:
            padded = call(**inputs).logits
            packed = call(**inputs, packed_rows=rows).logits
        finally:
            watching.remove()
    if shapes[-1][:2] != (1, sum(TRIED)):
        return "the model does not tell its blocks which tokens there are"
    if padded.shape[:2] == mask.shape:  # logits per position; those at padding mean nothing
        padded, packed = padded[mask.bool()], packed[mask.bool()]
    tolerance = max(1e-3, 4 * torch.finfo(padded.dtype).eps)
    if not bool((packed - padded).norm() <= tolerance * padded.norm()):
        return "the model gives other logits on packed rows"
    return None
