"""Tiny random models of many architectures, saved as the hub has them: what a user gives as --model.

A classifier starts from the file of a language model. That file has no classification head, and often no pooler either:
`microsoft/deberta-v3-small` and `roberta-base` are such files. Weights are larger than usual, so that what a layer does shows
in the logits. Sliding windows are shorter than the rows, and soft caps lower than the logits.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from ..tiny import bytes_of, save, word_pieces

SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
DECODER = SHAPE | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
WINDOW = 5
"""Tokens that a layer with a sliding window sees; rows are longer."""
LETTERS = string.ascii_lowercase + " "
Make = Callable[[], tuple[Any, Any]]
"""Makes a model and its tokenizer."""


def _bert() -> tuple[Any, Any]:
    tokenizer = word_pieces()
    return hf.BertForMaskedLM(hf.BertConfig(**_ids(tokenizer), **SHAPE)), tokenizer


def _distilbert() -> tuple[Any, Any]:
    tokenizer = word_pieces()
    shape = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "initializer_range": 0.2}
    return hf.DistilBertForMaskedLM(hf.DistilBertConfig(**_ids(tokenizer), **shape)), tokenizer


def _electra() -> tuple[Any, Any]:
    """As the discriminator of ELECTRA-small, whose embeddings are narrower than its layers."""
    tokenizer = word_pieces()
    return hf.ElectraForPreTraining(hf.ElectraConfig(**_ids(tokenizer), **SHAPE, embedding_size=8)), tokenizer


def _roberta() -> tuple[Any, Any]:
    tokenizer = _roberta_bytes()
    return hf.RobertaForMaskedLM(hf.RobertaConfig(**_ids(tokenizer), **SHAPE, type_vocab_size=1)), tokenizer


def _deberta() -> tuple[Any, Any]:
    """With the relative positions of DeBERTa-v3."""
    tokenizer = hf.DebertaV2Tokenizer(vocab=_scored("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"))
    config = hf.DebertaV2Config(
        **_ids(tokenizer), **SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm",
        share_att_key=True, position_buckets=8, position_biased_input=False, type_vocab_size=0, pooler_hidden_size=16,
    )  # fmt: skip
    return hf.DebertaV2ForMaskedLM(config), tokenizer


def _albert() -> tuple[Any, Any]:
    """All layers share their weights."""
    tokenizer = hf.AlbertTokenizer(vocab=_scored("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))
    return hf.AlbertForMaskedLM(hf.AlbertConfig(**_ids(tokenizer), **SHAPE, embedding_size=8)), tokenizer


def _mpnet() -> tuple[Any, Any]:
    pieces = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = hf.MPNetTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
    return hf.MPNetForMaskedLM(hf.MPNetConfig(**_ids(tokenizer), **SHAPE)), tokenizer


def _modernbert() -> tuple[Any, Any]:
    """Local and global attention in turn, and the mean over the tokens in place of a pooler."""
    tokenizer = _letters("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    config = hf.ModernBertConfig(
        **_ids(tokenizer), **SHAPE, local_attention=4, global_attn_every_n_layers=2, classifier_pooling="mean",
    )  # fmt: skip
    return hf.ModernBertForMaskedLM(config), tokenizer


def _llama() -> tuple[Any, Any]:
    tokenizer = _letters("<unk>", "<s>", "</s>")  # without a token for padding
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_ids(tokenizer), **DECODER)), tokenizer


def _mistral() -> tuple[Any, Any]:
    tokenizer = _letters("<unk>", "<s>", "</s>")
    return hf.MistralForCausalLM(hf.MistralConfig(**_ids(tokenizer), **DECODER, sliding_window=WINDOW)), tokenizer


def _phi3() -> tuple[Any, Any]:
    """One matrix for queries, keys and values, and one for gate and up."""
    tokenizer = _letters("<unk>", "<s>", "</s>", "<|endoftext|>")
    shape = {name: size for name, size in DECODER.items() if name != "head_dim"}
    return hf.Phi3ForCausalLM(hf.Phi3Config(**_ids(tokenizer), **shape, sliding_window=WINDOW)), tokenizer


def _qwen2() -> tuple[Any, Any]:
    """With biases, and one matrix for the embeddings and the output layer."""
    tokenizer = bytes_of(hf.Qwen2Tokenizer)
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**_ids(tokenizer), **DECODER, tie_word_embeddings=True)), tokenizer


def _qwen3() -> tuple[Any, Any]:
    """With norms of queries and keys."""
    tokenizer = bytes_of(hf.Qwen2Tokenizer)
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**_ids(tokenizer), **DECODER, tie_word_embeddings=True)), tokenizer


def _gemma() -> tuple[Any, Any]:
    tokenizer = _gemma_letters()
    return hf.GemmaForCausalLM(hf.GemmaConfig(**_ids(tokenizer), **DECODER)), tokenizer


def _gemma2() -> tuple[Any, Any]:
    """Soft caps in attention and on the logits, and a sliding window in every other layer."""
    tokenizer = _gemma_letters()
    config = hf.Gemma2Config(
        **_ids(tokenizer), **DECODER, sliding_window=WINDOW, query_pre_attn_scalar=8, attn_logit_softcapping=1.0,
        final_logit_softcapping=2.0,
    )  # fmt: skip
    return hf.Gemma2ForCausalLM(config), tokenizer


def _gemma3() -> tuple[Any, Any]:
    """As the 1B model, which reads text alone."""
    tokenizer = _gemma_letters()
    config = hf.Gemma3TextConfig(
        **_ids(tokenizer), **DECODER, sliding_window=WINDOW, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return hf.Gemma3ForCausalLM(config), tokenizer


def _gpt2() -> tuple[Any, Any]:
    """Layers of type Conv1D, and no token for padding."""
    tokenizer = bytes_of(hf.GPT2Tokenizer)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**_ids(tokenizer), **shape)), tokenizer


def _t5() -> tuple[Any, Any]:
    tokenizer = hf.T5Tokenizer(vocab=_scored("<pad>", "</s>", "<unk>"), extra_ids=0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "initializer_factor": 1.0}
    return hf.T5ForConditionalGeneration(hf.T5Config(**_ids(tokenizer), **shape, decoder_start_token_id=0)), tokenizer


def _bart() -> tuple[Any, Any]:
    tokenizer = _roberta_bytes()
    shape = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in _BART_SIDE.items()}
    config = hf.BartConfig(
        **_ids(tokenizer), **shape, d_model=16, init_std=0.2, max_position_embeddings=64,
        decoder_start_token_id=tokenizer.eos_token_id, forced_eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return hf.BartForConditionalGeneration(config), tokenizer


_BART_SIDE = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}


def _gemma3_with_images() -> tuple[Any, Any]:
    """As the 4B model: a language model beside a tower that reads images."""
    tokenizer = _gemma_letters()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<start_of_image>", "<end_of_image>"]})
    model, _ = _gemma3()
    text = model.config.to_dict() | {"vocab_size": len(tokenizer)}
    vision = {name: SHAPE[name] for name in SHAPE if name != "initializer_range"} | {"image_size": 8, "patch_size": 4}
    config = hf.Gemma3Config(
        text_config=text, vision_config=vision | {"vision_use_head": False}, mm_tokens_per_image=4,
        image_token_index=len(tokenizer) - 3, boi_token_index=len(tokenizer) - 2, eoi_token_index=len(tokenizer) - 1,
    )  # fmt: skip
    return hf.Gemma3ForConditionalGeneration(config), tokenizer


def _with_head(*names: str) -> Make:
    """A BERT that was trained as a classifier of other classes."""

    def make() -> tuple[Any, Any]:
        tokenizer = word_pieces()
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        return hf.BertForSequenceClassification(hf.BertConfig(**_ids(tokenizer), **SHAPE, **labels)), tokenizer

    return make


def _image_model(model: Callable[[], Any], size: int = 8) -> Make:
    return lambda: (model(), hf.ViTImageProcessor(size={"height": size, "width": size}))


def _vit() -> Any:
    return hf.ViTForImageClassification(hf.ViTConfig(**SHAPE, image_size=8, patch_size=4))


def _swin() -> Any:
    shape = {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
    return hf.SwinForImageClassification(hf.SwinConfig(**shape, initializer_range=0.2))


def _convnext() -> Any:
    shape = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "patch_size": 2, "image_size": 32}
    return hf.ConvNextForImageClassification(hf.ConvNextConfig(**shape, initializer_range=0.2, layer_scale_init_value=0.1))


def _dinov2() -> Any:
    """Without a classification head, as the hub has it."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "initializer_range": 0.2}
    return hf.Dinov2Model(hf.Dinov2Config(**shape, image_size=8, patch_size=4))


CLASSIFIERS: dict[str, Make] = {
    "BERT": _bert,
    "RoBERTa": _roberta,
    "DistilBERT": _distilbert,
    "DeBERTa-v2": _deberta,
    "ELECTRA": _electra,
    "ALBERT": _albert,
    "MPNet": _mpnet,
    "ModernBERT": _modernbert,
    "Llama": _llama,
    "Qwen2": _qwen2,
    "Gemma": _gemma,
    "GPT-2": _gpt2,
}
"""Model and tokenizer of a checkpoint without a classification head, by the name of its architecture."""
LANGUAGE_MODELS: dict[str, Make] = {
    "Llama": _llama,
    "Qwen2": _qwen2,
    "Qwen3": _qwen3,
    "Gemma 2": _gemma2,
    "Gemma 3": _gemma3,
    "Phi-3": _phi3,
    "Mistral": _mistral,
    "GPT-2": _gpt2,
}


OTHER_CLASSIFIERS: dict[str, Make] = {
    "T5": _t5,
    "BART": _bart,
    "Gemma 3 with images": _gemma3_with_images,
    "BERT that was a classifier of these classes": _with_head("bad", "good", "mixed"),
    "BERT that was a classifier of other classes": _with_head("yes", "no"),
}
IMAGE_CLASSIFIERS: dict[str, Make] = {
    "ViT": _image_model(_vit),
    "Swin": _image_model(_swin),
    "ConvNeXt": _image_model(_convnext, size=32),
    "DINOv2": _image_model(_dinov2),
}
OTHER_LANGUAGE_MODELS: dict[str, Make] = {"Gemma 3 with images": _gemma3_with_images}


def save_model(make: Make, directory: Path) -> str:
    """Save a model and its tokenizer, the same at every call, and return the directory's name."""
    torch.manual_seed(0)
    return save(directory, *make())


def _ids(tokenizer: Any) -> dict[str, Any]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    return {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}


def _letters(*special: str) -> Any:
    """A token per letter, of the class that tokenizers without one of their own have."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    if "[CLS]" not in special:
        names = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"} | ({"pad": special[-1]} if len(special) > 3 else {})
    vocabulary = {token: i for i, token in enumerate([*special, *LETTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk"]))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    first, last = names.get("cls") or names["bos"], names.get("sep")
    frame = f"{first} $A {last}" if last else f"{first} $A"
    inner.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(token, vocabulary[token]) for token in (first, last) if token]
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner, **{f"{name}_token": token for name, token in names.items()})


def _gemma_letters() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    tokenizer = hf.GemmaTokenizer(vocab={token: i for i, token in enumerate([*special, *string.ascii_lowercase])})
    tokenizer.add_bos_token = True
    return tokenizer


def _roberta_bytes() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    return hf.RobertaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def _scored(*special: str) -> list[tuple[str, float]]:
    """A vocabulary of letters for the Unigram tokenizers of SentencePiece models."""
    return [*((token, 0.0) for token in special), ("▁", -2.0), *((letter, -3.0) for letter in string.ascii_lowercase)]
