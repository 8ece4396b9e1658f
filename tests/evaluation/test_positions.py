"""How many tokens a model can read: the limit is exact, or there is none."""

import pytest
import torch
import transformers as hf

from alloralib.errors import DataError
from alloralib.evaluation.positions import check_positions, position_limit

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 11}
TABLE = SIZES | {"max_position_embeddings": 16}
MODELS = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**TABLE)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**TABLE)),
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(vocab_size=11, dim=8, hidden_dim=8, n_layers=1, n_heads=1, max_position_embeddings=16)
    ),
    "electra": lambda: hf.ElectraModel(hf.ElectraConfig(**TABLE, embedding_size=8)),
    "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**TABLE, embedding_size=8)),
    "mpnet": lambda: hf.MPNetModel(hf.MPNetConfig(**TABLE)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=1, n_head=1)),
    "gpt-neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            vocab_size=11, max_position_embeddings=16, hidden_size=8, num_layers=1, num_heads=1,
            attention_types=[[["global"], 1]],
        )
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=11, max_position_embeddings=16, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1,
            word_embed_proj_dim=8,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_limit_is_the_longest_row_that_the_model_reads(name: str) -> None:
    model = MODELS[name]().eval()
    limit = position_limit(model)
    assert limit is not None
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


def test_computed_positions_have_no_limit() -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**TABLE)).eval()
    assert position_limit(model) is None
    check_positions(model, [1000], what="row", remedy="")


def test_the_first_input_that_is_too_long_is_named() -> None:
    with pytest.raises(DataError, match=r"row 2: 1,000 tokens, but the model has 16 positions\n  remedy: cut it"):
        check_positions(MODELS["gpt2"](), [16, 1000, 17], what="row", remedy="cut it")
