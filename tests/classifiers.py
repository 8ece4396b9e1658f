"""Tiny random models, as their files are: of a language model, of a body alone, or of a classifier. A classifier made of such a
file has weights that the file lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from transformers import ViTImageProcessor

from .tiny import SHAPE, bytes_of, save, word_level
from .trained import ADJECTIVES, NOUNS

WORDS = [*NOUNS, *ADJECTIVES]
TEXT = {**SHAPE, "vocab_size": 3 + len(WORDS), "pad_token_id": 0}
_WIDE = {"initializer_range": 0.2}  # see `tiny.SHAPE`
_VISION = {**SHAPE, "image_size": 8, "patch_size": 4}


def _gpt2() -> Any:
    return t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=TEXT["vocab_size"], n_embd=16, n_layer=1, n_head=2, eos_token_id=1, **_WIDE)
    )


def _distilbert() -> Any:
    shape = {"vocab_size": TEXT["vocab_size"], "dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
    return t.DistilBertForMaskedLM(t.DistilBertConfig(**shape, **_WIDE))


def _modernbert() -> Any:
    return t.ModernBertForMaskedLM(t.ModernBertConfig(**TEXT, cls_token_id=2, sep_token_id=1, bos_token_id=2, eos_token_id=1))


def _levit() -> Any:
    shape = {"hidden_sizes": [16] * 3, "num_attention_heads": [1] * 3, "depths": [1] * 3, "key_dim": [8] * 3}
    model = t.LevitModel(t.LevitConfig(image_size=32, attention_ratio=[2] * 3, mlp_ratio=[2] * 3, **shape))
    for module in model.modules():  # its own initial values make almost nothing of an image
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.ones_(module.weight)
        elif isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.3)
    return model


def _qwen2() -> Any:
    shape = {**TEXT, "vocab_size": 257, "num_key_value_heads": 1}
    return t.Qwen2ForCausalLM(t.Qwen2Config(**shape))


TEXTS: dict[str, tuple[Callable[[], Any], set[str]]] = {  # the model, and what a classifier trains whole
    "bert": (lambda: t.BertForMaskedLM(t.BertConfig(**TEXT)), {"bert.pooler.dense", "classifier"}),
    "roberta": (lambda: t.RobertaForMaskedLM(t.RobertaConfig(**TEXT)), {"classifier"}),
    "distilbert": (_distilbert, {"pre_classifier", "classifier"}),
    "deberta-v2": (lambda: t.DebertaV2ForMaskedLM(t.DebertaV2Config(**TEXT)), {"pooler", "classifier"}),
    "electra": (lambda: t.ElectraForPreTraining(t.ElectraConfig(**TEXT, embedding_size=8)), {"classifier"}),
    "albert": (lambda: t.AlbertForMaskedLM(t.AlbertConfig(**TEXT, embedding_size=8)), {"albert.pooler", "classifier"}),
    "mpnet": (lambda: t.MPNetForMaskedLM(t.MPNetConfig(**TEXT)), {"classifier"}),
    "modernbert": (_modernbert, {"head", "classifier"}),
    "llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, num_key_value_heads=1)), {"score"}),
    "qwen2": (_qwen2, {"score"}),
    "gemma": (lambda: t.GemmaForCausalLM(t.GemmaConfig(**TEXT, num_key_value_heads=1, head_dim=8)), {"score"}),
    "gpt2": (_gpt2, {"score"}),
    # classifiers already: of another number of classes, for regression, and for several labels at once
    "bert of 2 classes": (lambda: t.BertForSequenceClassification(t.BertConfig(**TEXT)), {"classifier"}),
    "roberta for regression": (
        lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**TEXT, num_labels=1, problem_type="regression")),
        {"classifier"},
    ),
    "deberta-v2 of 3 classes": (
        lambda: t.DebertaV2ForSequenceClassification(
            t.DebertaV2Config(**TEXT, num_labels=3, problem_type="multi_label_classification")
        ),
        {"pooler", "classifier"},
    ),
}

IMAGES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "vit": (lambda: t.ViTModel(t.ViTConfig(**_VISION)), {"classifier"}),
    "vit of 2 classes": (lambda: t.ViTForImageClassification(t.ViTConfig(**_VISION)), {"classifier"}),
    "swin": (
        lambda: t.SwinModel(
            t.SwinConfig(image_size=8, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2, **_WIDE)
        ),
        {"classifier"},
    ),
    "convnext": (
        lambda: t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], image_size=32, **_WIDE)),
        {"classifier"},
    ),
    "resnet": (  # has batch normalization, and no linear layer but its head
        lambda: t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")),
        {"classifier"},
    ),
    "levit": (_levit, {"classifier"}),  # its head begins with batch normalization
}


def save_text(name: str, directory: Path) -> str:
    """Write the model of `TEXTS` with a tokenizer; a Qwen2's has a token per byte, all others one per word."""
    tokenizer = bytes_of(t.Qwen2Tokenizer) if name == "qwen2" else word_level(WORDS)
    return save(directory, TEXTS[name][0](), tokenizer)


def save_images(name: str, directory: Path) -> str:
    """Write the model of `IMAGES` with a processor."""
    size = 32 if name in ("convnext", "levit") else 8
    return save(directory, IMAGES[name][0](), ViTImageProcessor(size={"height": size, "width": size}))
