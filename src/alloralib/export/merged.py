"""The adapter merged into its base: a model of its own that needs neither PEFT nor alloralib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from ..adapters.targets import embeddings_of
from ..files import staged
from .proof import Batch, Load, Proof, Trained, check_mergeable, logits


def export_merged(adapter: Path, output: Path, *, load_base: Load, inputs: Sequence[Batch], tokenizer: Any = None) -> Proof:
    """Write base + BA as a model: safetensors, configuration, and the tokenizer or image processor if given.

    Args:
        adapter: directory of a saved adapter.
        output: the directory to make.
        load_base: loads the frozen model; called several times.
        inputs: the batches to compare logits on, as arguments of the model's forward pass.
        tokenizer: a tokenizer or image processor to save beside the model.

    Raises:
        MergeError: the adapter cannot be merged or was never trained, or the reloaded model does not compute the same.
        ConfigError: `output` already exists, or cannot be written.
    """
    check_mergeable(adapter)
    with staged(output) as path:
        trained = Trained.of(adapter, load_base, inputs)
        merged = merge(PeftModel.from_pretrained(load_base(), adapter).eval())
        merged.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        cls = type(merged)
        del merged
        again = cls.from_pretrained(path, dtype=trained.dtype).eval()
        return trained.prove(logits(again, inputs), str(output))


def merge(model: PeftModel) -> Any:
    """The base model with W + BA in place of W, without any trace of PEFT.

    Embeddings that share their weight with the output layer get a weight of their own if either of the two is adapted.
    """
    _untie_adapted(model)
    return cast(Any, model).merge_and_unload(safe_merge=True)


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
