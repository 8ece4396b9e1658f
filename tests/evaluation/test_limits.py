"""The limits that are read from a model are those that it has: one token more, and it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from alloralib.evaluation.choice import evaluate_choices
from alloralib.evaluation.limits import limits_of

from ..conftest import WORDS
from ..tiny import word_level

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 20, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
BYTES = SMALL | {"num_key_value_heads": 1}
GPT = {"vocab_size": 50, "n_positions": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 1}
BART = {
    "vocab_size": 50, "d_model": 16, "max_position_embeddings": 20, "decoder_layers": 1, "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "pad_token_id": 1,
}  # fmt: skip

# configuration, settings, what a row may have at most (None: any number)
ENCODERS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "bert": ("BertConfig", SMALL, 20),
    "roberta": ("RobertaConfig", SMALL, 18),
    "roberta, padding 3": ("RobertaConfig", SMALL | {"pad_token_id": 3}, 16),
    "xlm-roberta": ("XLMRobertaConfig", SMALL, 18),
    "camembert": ("CamembertConfig", SMALL, 18),
    "mpnet": ("MPNetConfig", SMALL, 18),
    "distilbert": ("DistilBertConfig", SMALL | {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}, 20),
    "electra": ("ElectraConfig", SMALL | {"embedding_size": 16}, 20),
    "albert": ("AlbertConfig", SMALL | {"embedding_size": 8}, 20),
    "deberta-v2": ("DebertaV2Config", SMALL | {"position_biased_input": True}, 20),
    "deberta-v3": ("DebertaV2Config", SMALL | {"position_biased_input": False, "relative_attention": True,
                                               "pos_att_type": ["p2c", "c2p"]}, None),
    "modernbert": ("ModernBertConfig", SMALL | {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3}, None),
    "xlnet": ("XLNetConfig", {"vocab_size": 50, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}, None),
    "nystromformer": ("NystromformerConfig", SMALL | {"segment_means_seq_len": 20, "num_landmarks": 20}, 20),
    "esm, rotary": ("EsmConfig", SMALL | {"position_embedding_type": "rotary", "mask_token_id": 4}, None),
    "convbert": ("ConvBertConfig", SMALL | {"embedding_size": 16}, 20),
    "rembert": ("RemBertConfig", SMALL | {"input_embedding_size": 8}, 20),
    "big-bird": ("BigBirdConfig", SMALL | {"attention_type": "original_full"}, 20),
    "fnet": ("FNetConfig", SMALL, 20),
}  # fmt: skip
DECODERS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "gpt2": ("GPT2Config", GPT, 20),
    "gpt-neo": ("GPTNeoConfig", SMALL | {"num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}, 20),
    "gpt-j": ("GPTJConfig", GPT | {"rotary_dim": 8}, 20),
    "gpt-bigcode": ("GPTBigCodeConfig", GPT, 20),
    "codegen": ("CodeGenConfig", GPT | {"rotary_dim": 4, "n_head": 4}, 20),
    "openai-gpt": ("OpenAIGPTConfig", GPT, 20),
    "ctrl": ("CTRLConfig", GPT | {"dff": 16}, 20),
    "opt": ("OPTConfig", SMALL | {"ffn_dim": 16, "word_embed_proj_dim": 16}, 20),
    "biogpt": ("BioGptConfig", SMALL, 20),
    "bart": ("BartConfig", BART, 20),
    "xglm": ("XGLMConfig", SMALL | {"d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 16}, None),
    "roberta": ("RobertaConfig", SMALL | {"is_decoder": True}, 18),
    "llama": ("LlamaConfig", BYTES, None),
    "qwen2": ("Qwen2Config", BYTES, None),
    "qwen3": ("Qwen3Config", BYTES | {"head_dim": 8}, None),
    "gemma2": ("Gemma2Config", BYTES | {"head_dim": 8, "sliding_window": 8}, None),
    "gemma3": ("Gemma3TextConfig", BYTES | {"head_dim": 8, "sliding_window": 8}, None),
    "phi3": ("Phi3Config", BYTES, None),
    "mistral": ("MistralConfig", BYTES | {"sliding_window": 8}, None),
    "gpt-neox": ("GPTNeoXConfig", SMALL, None),
    "bloom": ("BloomConfig", {"vocab_size": 50, "hidden_size": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 1}, None),
    "mpt": ("MptConfig", {"vocab_size": 50, "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 20}, 20),
    "falcon, alibi": ("FalconConfig", SMALL | {"alibi": True}, None),
}
MODELS = [(name, "AutoModelForSequenceClassification", *entry) for name, entry in ENCODERS.items()]
MODELS += [(name, "AutoModelForCausalLM", *entry) for name, entry in DECODERS.items()]


def run(model: Any, length: int) -> None:
    ids = torch.randint(4, 50, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize(("auto", "config", "settings", "positions"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_one_token_more_is_too_many(auto: str, config: str, settings: dict[str, Any], positions: int | None) -> None:
    made = getattr(transformers, config)(**settings)
    with torch.device("meta"):
        limits = limits_of(getattr(transformers, auto).from_config(made))
    model = getattr(transformers, auto).from_config(made).eval()
    assert limits_of(model) == limits, "a model without weights has the same limits"
    assert limits.positions == positions
    assert limits.tokens == 50
    run(model, positions or 70)
    if positions is not None:
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            run(model, positions + 1)


@pytest.mark.parametrize(("config", "settings"), [m[:2] for m in DECODERS.values()], ids=list(DECODERS))
def test_choices_are_scored_as_by_whole_rows(config: str, settings: dict[str, Any]) -> None:
    """Prompts of different lengths, longer than a sliding window, in one batch: whatever positions and cache a model has."""
    longer = {name: 40 for name in ("max_position_embeddings", "n_positions", "max_seq_len") if name in settings}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings | longer)).eval()
    for p in model.parameters():
        p.data.mul_(3)
    tokenizer = word_level(WORDS)
    prompts = [" ".join(WORDS[:n]) for n in (3, 9, 15)]
    choices = ["good bad film story music scene ending", "the", "a was is and"]
    items = evaluate_choices(model, tokenizer, prompts, [choices] * 3, [0] * 3, batch_size=3).items
    for prompt, item in zip(prompts, items, strict=True):
        asked = tokenizer(prompt)["input_ids"]
        for choice, score in zip(choices, item["log_probabilities"], strict=True):
            said = tokenizer(choice)["input_ids"]
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].log_softmax(dim=-1)
            expected = logs.gather(1, torch.tensor(said)[:, None]).sum().item()
            assert score == pytest.approx(expected, rel=1e-3, abs=1e-3)
