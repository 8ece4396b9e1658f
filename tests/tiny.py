"""Tokenizers that need no download, and tiny random models saved beside them as the hub has them: a directory to name.

transformers takes the tokenizer's class from the model's architecture: beside a Qwen2 any file is read as a byte-level
tokenizer, and of words it would make almost nothing.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
"""So narrow a model needs larger weights than the usual .02, or nothing in it moves."""


def word_level(words: Sequence[str]) -> Any:
    """A token per known word; ids 0 to 2 are padding, end of text and the unknown word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *words])}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def word_pieces() -> Any:
    """BERT's, with pieces of one letter."""
    from transformers import BertTokenizer

    letters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *string.punctuation]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def bytes_of(kind: Any) -> Any:
    """A byte-level tokenizer without merges, of a class of transformers: a token per byte, none unknown."""
    from tokenizers.pre_tokenizers import ByteLevel

    return kind(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])


def save(path: Path, model: Any, tokenizer: Any) -> str:
    """Save both into one directory, and return its name."""
    tokenizer.save_pretrained(path)
    model.save_pretrained(path)
    return str(path)


def save_bert(path: Path) -> str:
    """The architecture of arctic-embed, with its own dropout."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = word_pieces()
    torch.manual_seed(0)
    return save(path, BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **SHAPE)), tokenizer)


def save_qwen2(path: Path) -> str:
    """The architecture of Qwen2-0.5B."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    tokenizer = bytes_of(Qwen2Tokenizer)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, **SHAPE,
    )  # fmt: skip
    return save(path, Qwen2ForCausalLM(config), tokenizer)


def save_llama(path: Path) -> str:
    """The architecture of SmolLM2-360M: a Llama with GPT-2's tokenizer, which has no padding token."""
    from transformers import GPT2Tokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = bytes_of(GPT2Tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=1, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, **SHAPE
    )
    return save(path, LlamaForCausalLM(config), tokenizer)
