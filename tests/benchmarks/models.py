"""Tiny models with a batch, for tests that build the benchmarks' arms."""

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from benchmarks import arms
from benchmarks.models import stack

ROWS, LENGTH, R = 2, 8, 4
llama_config: Any = LlamaConfig
bert_config: Any = BertConfig


def llama() -> tuple[Any, arms.Batch]:
    torch.manual_seed(0)
    config = llama_config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    ids = torch.randint(1, 64, (ROWS, LENGTH))
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids, "use_cache": False}


def bert() -> tuple[Any, arms.Batch]:
    torch.manual_seed(0)
    config = bert_config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=3,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0, attn_implementation="eager",
    )  # fmt: skip
    ids = torch.randint(1, 64, (ROWS, LENGTH))
    return BertForSequenceClassification(config), {"input_ids": ids, "labels": torch.arange(ROWS)}


def small_stack() -> tuple[Any, arms.Batch]:
    model, batch = stack(192, 1, ROWS, LENGTH, "float32")
    model.config._attn_implementation = "eager"
    return model, batch
