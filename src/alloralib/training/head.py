"""The loss of TRL's SFTTrainer without logits where nothing is learnt.

TRL gives a model another forward pass, `model(..., labels=labels, fused_lm_head=True)`, which returns a score for every
token, and makes loss, accuracy and entropy of it. Away from Triton its own makes the logits of every position, prompts and
padding too, and makes them twice. Here only the making of the scores is replaced: what is done with them, over
micro-batches and processes, stays TRL's.

Foreign private API used here: that keyword, and TRL's `FusedCausalLMOutput`.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from ..evaluation.next_token import score_next_tokens
from .packing import without_padding


def score_labels_only(model: Any) -> None:
    """Replace what the model does when TRL's trainer asks it for the scores of a batch.

    Args:
        model: a causal language model, without the wrapper of an adapter, that TRL's trainer has prepared.
    """
    prepared = model.forward

    @functools.wraps(type(model).forward)  # `generate` and PEFT look at its arguments
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return prepared(*args, **inputs)
        if "shift_labels" in inputs:  # sequences that are spread over processes
            return prepared(*args, fused_lm_head=True, **inputs)
        labels = inputs.pop("labels")
        call = functools.partial(prepared, *args)
        found = score_next_tokens(self, without_padding(self, inputs, call=call), labels, call=call)
        loss = found.loss
        return FusedCausalLMOutput(
            loss=loss.sum() / max(len(loss), 1),
            log_probs=_spread(-loss, found.mask),
            entropy=_spread(loss.new_zeros(loss.shape), found.mask),  # not computed
            is_top1=_spread(loss.new_zeros(loss.shape, dtype=torch.bool), found.mask),  # not computed
            label_mask=found.mask,
            aux_loss=getattr(found.output, "aux_loss", None),
        )

    model.forward = types.MethodType(forward, model)


def _spread(scores: Tensor, mask: Tensor) -> Tensor:
    """(batch, length - 1), zero where there is no label; tied to the model even where there is none at all, because every
    process of a distributed run has to have gradients."""
    mask = mask.to(scores.device)
    return scores.new_zeros(mask.shape).masked_scatter(mask, scores)
