"""The adapter merged into its base: a model of its own that needs neither PEFT nor alloralib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from ..adapters.targets import embeddings_of
from ..files import staged
from .proof import Batch, Load, Proof, Trained, check_mergeable, load_adapter, logits


def export_merged(
    adapter: Path, output: Path, *, load_base: Load, inputs: Sequence[Batch], tokenizer: Any = None,
    dtype: torch.dtype | None = None, stored: Mapping[str, torch.dtype] | None = None,
) -> Proof:  # fmt: skip
    """Write base + BA as a model: safetensors, configuration, and the tokenizer or image processor if given.

    Args:
        adapter: directory of a saved adapter.
        output: the directory to make.
        load_base: loads the frozen model; called several times.
        inputs: the batches to compare logits on, as arguments of the model's forward pass.
        tokenizer: a tokenizer or image processor to save beside the model.
        dtype: of the weights on disk; by default as they are loaded.
        stored: the dtype of single weights on disk, by name, where it is not `dtype`.

    Raises:
        MergeError: the adapter cannot be merged or was never trained, or the reloaded model does not compute the same.
        ModelError: the adapter does not fit the base.
        ConfigError: `output` already exists, or cannot be written.
    """
    check_mergeable(adapter)
    with staged(output) as path:
        trained = Trained.of(adapter, load_base, inputs, dtype)
        merged = merge(load_adapter(load_base(), adapter))
        if dtype is not None:
            round_weights(merged, dtype, stored or {})
        merged.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        cls = type(merged)
        del merged
        again = cls.from_pretrained(path, dtype=trained.dtype).eval()
        return trained.prove(logits(again, inputs), str(output))


def merge(model: PeftModel) -> Any:
    """The base model with W + BA in place of W, without any trace of PEFT.

    Embeddings that share their weight with the output layer get a weight of their own if either of the two is adapted. The sum
    is formed in float32, layer by layer, and rounded once to the dtype of W. (PEFT would round BA and then the sum.)
    """
    _untie_adapted(model)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        base = layer.get_base_layer()
        dtype = next(base.parameters()).dtype
        if dtype in (torch.float16, torch.bfloat16):
            base.float()
            cast(Any, layer).merge(safe_merge=True)
            base.to(dtype)
    return cast(Any, model).merge_and_unload(safe_merge=True)


def round_weights(model: Any, dtype: torch.dtype, stored: Mapping[str, torch.dtype]) -> None:
    """Round all weights to the dtype in which they are stored.

    Args:
        dtype: of those that `stored` does not name.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point():
            value.data = value.data.to(stored.get(name, dtype))


def _untie_adapted(model: PeftModel) -> None:
    base: Any = model.get_base_model()
    inputs, outputs = embeddings_of(base)
    if not any(isinstance(module, LoraLayer) for module in (inputs, outputs)):
        return
    source, target = (cast(Any, m.get_base_layer() if isinstance(m, LoraLayer) else m) for m in (inputs, outputs))
    if target is None or source.weight is not target.weight:
        return
    target.weight = nn.Parameter(target.weight.detach().clone(), requires_grad=False)
    base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False
